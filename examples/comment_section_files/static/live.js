// Keeps a page of comments up to date. Without this script, the site needs a reload to show changes.
"use strict";

const list = document.getElementById("comments");

function connect() {
  // Each connection begins with the current comments of the page.
  const events = new EventSource(list.dataset.events);
  events.onmessage = (event) => show(JSON.parse(event.data));
  // The browser connects again by itself, except after an HTTP error, for example of a proxy.
  events.onerror = () => {
    if (events.readyState === EventSource.CLOSED) setTimeout(connect, 2000);
  };
}

// Shows a comment that is new, changed, known or, if `isNew` is false, deleted. `ids` are all comments of the page.
function show({ id, html, isNew, ids }) {
  if (ids) {
    for (const comment of [...list.children]) {
      if (!ids.includes(values(comment).id)) comment.remove();
    }
    return;
  }
  const template = document.createElement("template");
  template.innerHTML = html;
  const comment = template.content.firstElementChild;
  const shown = document.getElementById(`comment-${id}`);
  if (!shown) {
    if (isNew) insert(comment);
  } else if (shown.dataset.version !== comment.dataset.version) {
    update(shown, comment);
    removeTombstones(document.getElementById(`comment-${id}`));
  }
}

function update(shown, comment) {
  if (shown.querySelector("details[open]") && !("isTombstone" in comment.dataset)) {
    // The user is writing. The form keeps its etag, so the service notices a conflict.
    shown.querySelector(".shown").replaceWith(comment.querySelector(".shown"));
    shown.dataset.version = comment.dataset.version;
  } else {
    shown.replaceWith(comment);
  }
}

// A deleted comment is a tombstone while there is a reply to it. The last one may be on the next page of comments.
function removeTombstones(comment) {
  while (comment && "isTombstone" in comment.dataset) {
    const next = comment.nextElementSibling;
    const hasReplies = next ? values(next).depth > values(comment).depth : "hasNext" in list.dataset;
    if (hasReplies) return;
    const parent = document.getElementById(`comment-${values(comment).replyTo}`);
    comment.remove();
    comment = parent;
  }
}

// The order is "thread desc": the newest thread first, and replies to the same comment by id.
function insert(comment) {
  const { id, depth, replyTo } = values(comment);
  const parent = document.getElementById(`comment-${replyTo}`);
  let next = parent ? parent.nextElementSibling : list.firstElementChild;
  while (next) {
    const other = values(next);
    if (other.depth < depth) break;
    if (other.depth === depth && (depth === 0 ? other.id < id : other.id > id)) break;
    next = next.nextElementSibling;
  }
  // The comment belongs to another page of comments.
  if (depth > 0 && !parent) return;
  if (next === list.firstElementChild && "hasPrevious" in list.dataset) return;
  if (!next && "hasNext" in list.dataset) return;
  list.insertBefore(comment, next);
}

function values(comment) {
  const { id, depth, replyTo } = comment.dataset;
  return { id: Number(id), depth: Number(depth), replyTo: Number(replyTo) };
}

connect();
