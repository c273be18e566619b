"""The comment section of examples/, in a real browser."""

import json
import os
import re
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import storeapi
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.polling import wait_until
from tests.support.ports import free_port, listens
from tests.support.proxies import binary
from tests.support.repository import ROOT
from tests.support.server_process import ServerProcess
from tests.support.timeouts import scaled_timeout

PROGRAM = ROOT / "examples/comment_section.py"


class Browser:
    """A browser with a user of the site."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver
        self._port = 0
        self._wait = WebDriverWait(
            driver, scaled_timeout(20), 0.05, ignored_exceptions=[StaleElementReferenceException]
        )

    def until(self, condition: Callable[[], object]) -> None:
        self._wait.until(lambda _: condition())

    def open(self, path: str = "/articles/42") -> None:
        self.driver.get(f"http://127.0.0.1:{self._port}{path}")

    def log_in(self, port: int, name: str) -> None:
        self._port = port
        self.driver.delete_all_cookies()
        self.open("/")
        self.find("[name=name]").send_keys(name)
        self.submit(self.find("header form"))
        self.open()

    def find(self, selector: str, within: WebElement | None = None) -> WebElement:
        found: WebElement = self._wait.until(
            lambda driver: (within or driver).find_elements(By.CSS_SELECTOR, selector)
        )[0]
        return found

    def click(self, selector: str, within: WebElement | None = None) -> None:
        self.find(selector, within).click()

    def bodies(self) -> list[str]:
        """The texts of all comments on the page, in their order."""
        return self.driver.execute_script(
            "return [...document.querySelectorAll('article .shown')]"
            ".map(it => it.querySelector('.body, .hidden').textContent)"
        )

    def comment(self, body: str) -> WebElement:
        """The comment with a text, as soon as the page shows it."""
        self.until(lambda: body in self.bodies())
        return self.find(f"article:nth-of-type({self.bodies().index(body) + 1})")

    def submit(self, form: WebElement) -> None:
        """Clicks the button of a form and waits for the next page."""
        self.driver.execute_script("window.isFormer = true")
        form.find_element(By.TAG_NAME, "button").click()
        self.until(
            lambda: self.driver.execute_script(
                "return !window.isFormer && document.readyState === 'complete'"
            )
        )

    def send(self, form: WebElement, body: str) -> None:
        """Replaces the text of a form and sends it."""
        field = form.find_element(By.TAG_NAME, "textarea")
        field.clear()
        field.send_keys(body)
        self.submit(form)

    def write(self, body: str) -> None:
        self.send(self.find("#write"), body)
        self.comment(body)

    def form(self, kind: str, comment: WebElement) -> WebElement:
        """Opens the form for a reply or an edit."""
        self.click(f"details.{kind} summary", comment)
        return self.find(f"details.{kind} form", comment)

    def reply(self, to: str, body: str) -> None:
        self.send(self.form("reply", self.comment(to)), body)
        self.comment(body)

    def moderate(self, body: str) -> None:
        """Hides a comment, shows it again or restores it."""
        self.submit(self.find("form.status", self.comment(body)))

    def delete(self, body: str) -> None:
        self.submit(self.find("form.delete", self.comment(body)))


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A service on a port of its own, so that it can start again there."""
    settings = {
        "DATABASE_URL": "sqlite:///store.db",
        "STORE_LISTEN": f"127.0.0.1:{free_port()}",
        "STORE_UNDELETE_HOURS": "24",
    }
    process = ServerProcess(tmp_path_factory.mktemp("service"), settings)
    process.start()
    yield process
    process.kill()


class Site:
    """The program as a process that can start again on the same port."""

    def __init__(self, server: str, log: Path) -> None:
        self.port = free_port()
        self.log = log
        self._command = [sys.executable, str(PROGRAM), "--server", server, "--port", str(self.port)]

    def start(self) -> None:
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command, stdout=output, stderr=output, env=os.environ | {"SESSION_SECRET": "secret"}
            )
        wait_until(lambda: self._process.poll() is not None or listens(self.port))

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(scaled_timeout())


@pytest.fixture(scope="module")
def site(service: ServerProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The running program. It logs no unhandled exception, also when it stops while pages are open."""
    site = Site(service.address, tmp_path_factory.mktemp("site") / "log")
    site.start()
    yield site
    site.stop()
    assert "Traceback" not in site.log.read_text(), site.log.read_text()


@contextmanager
def running_browser() -> Iterator[Browser]:
    options = webdriver.ChromeOptions()
    options.binary_location = binary("chromium")
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "hide-scrollbars"):
        options.add_argument(f"--{argument}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(binary("chromedriver")))
    try:
        yield Browser(driver)
    finally:
        driver.quit()


@pytest.fixture(scope="module")
def browsers() -> Iterator[tuple[Browser, Browser]]:
    """Two browsers, for two users. They have open pages when the site stops."""
    with running_browser() as one, running_browser() as other:
        yield one, other


@pytest.fixture
def readers(browsers: tuple[Browser, Browser], site: Site) -> tuple[Browser, Browser]:
    """Two users, both on the page of the same article."""
    for browser, name in zip(browsers, ("reader", "moderator"), strict=True):
        browser.log_in(site.port, name)
    return browsers


def depth_of(comment: WebElement) -> str | None:
    return comment.get_attribute("data-depth")


def test_comments_and_replies_appear_in_other_browsers(readers: tuple[Browser, Browser]) -> None:
    """A reply is below its comment, indented by one level, on both pages and after a reload."""
    reader, moderator = readers

    reader.write("First")
    moderator.comment("First")
    reader.write("Second")
    moderator.reply("First", "A reply")
    reader.reply("A reply", "A reply to the reply")
    moderator.reply("First", "Another reply")

    expected = ["Second", "First", "A reply", "A reply to the reply", "Another reply"]
    for browser in readers:
        browser.comment(expected[-1])
        assert browser.bodies()[:5] == expected
        assert [depth_of(browser.comment(body)) for body in expected] == ["0", "0", "1", "2", "1"]
        left = [browser.comment(body).location["x"] for body in expected]
        assert left[1] < left[2] < left[3]
        browser.open()
        assert browser.bodies()[:5] == expected


def test_edit_shows_up_and_conflict_shows_both_versions(readers: tuple[Browser, Browser], site: Site) -> None:
    """The user decides which version stays. An open form is not replaced by a live update."""
    one, other = readers
    other.log_in(site.port, "reader")
    one.write("Version 1")
    form = one.form("edit", one.comment("Version 1"))
    other.send(other.form("edit", other.comment("Version 1")), "Version 2")
    one.comment("Version 2")

    one.send(form, "Version 3")

    assert one.find("#other").text == "Version 2"
    assert one.find("#mine textarea").get_attribute("value") == "Version 3"
    assert "Version 2" in other.bodies()
    one.submit(one.find("#mine"))
    other.comment("Version 3")
    one.comment("Version 3")


def test_hidden_comment_keeps_its_place(readers: tuple[Browser, Browser]) -> None:
    """Nobody reads its text, and it is not counted."""
    reader, moderator = readers
    reader.write("Something rude")
    moderator.reply("Something rude", "A calm reply")
    reader.open("/")
    before = int(reader.find("#article-42 small").text.split()[0])
    reader.open()

    moderator.moderate("Something rude")

    for browser in readers:
        browser.comment("hidden by a moderator")
        assert browser.bodies()[:2] == ["hidden by a moderator", "A calm reply"]
        assert "Something rude" not in browser.driver.page_source
    reader.open("/")
    assert reader.find("#article-42 small").text == f"{before - 1} comments"

    moderator.moderate("hidden by a moderator")
    reader.open()
    assert reader.bodies()[:2] == ["Something rude", "A calm reply"]


def test_deleted_comment_with_replies_keeps_its_place(readers: tuple[Browser, Browser]) -> None:
    """Only moderators read its text, and can restore it. Without replies it vanishes, with those above it."""
    reader, moderator = readers
    reader.write("Said too early")
    reader.reply("Said too early", "Said too late")
    moderator.reply("Said too late", "A last word")

    reader.delete("Said too early")
    reader.delete("Said too late")

    moderator.comment("deleted: Said too late")
    assert moderator.bodies()[:3] == ["deleted: Said too early", "deleted: Said too late", "A last word"]
    assert reader.bodies()[:3] == ["deleted", "deleted", "A last word"]
    assert "Said too" not in reader.driver.page_source
    moderator.delete("A last word")
    reader.until(lambda: "deleted" not in reader.bodies())
    reader.open()
    assert "deleted" not in reader.bodies()

    moderator.moderate("deleted: Said too late")

    reader.comment("Said too late")
    assert reader.bodies()[:2] == ["deleted", "Said too late"]
    moderator.moderate("deleted: Said too early")
    reader.comment("Said too early")
    assert reader.bodies()[:2] == ["Said too early", "Said too late"]
    assert [depth_of(reader.comment(body)) for body in reader.bodies()[:2]] == ["0", "1"]


def test_moderator_reads_former_versions(readers: tuple[Browser, Browser]) -> None:
    """The newest first, also those of a deleted comment. Other users do not."""
    reader, moderator = readers
    reader.write("Draft")
    reader.send(reader.form("edit", reader.comment("Draft")), "Final")
    reader.delete("Final")

    moderator.click("a.history", moderator.comment("deleted: Final"))

    assert [it.text for it in moderator.driver.find_elements(By.CSS_SELECTOR, "li .body")] == [
        "Final",
        "Draft",
    ]
    reader.driver.get(moderator.driver.current_url)
    assert "Only moderators can read former versions." in reader.find("body").text


def test_search_box_finds_visible_comments(readers: tuple[Browser, Browser]) -> None:
    """With marked matches. Hidden comments are not found, and a mistake in a query is explained."""
    reader, moderator = readers
    reader.write("Basil needs <b>sun</b>")
    reader.write("Basil in the shade")
    moderator.moderate("Basil in the shade")

    def search(text: str) -> None:
        field = reader.find("#search input")
        field.clear()
        field.send_keys(text)
        reader.submit(reader.find("#search"))

    search("basil")
    results = [it.text for it in reader.driver.find_elements(By.CSS_SELECTOR, ".result")]
    marked = [it.text for it in reader.driver.find_elements(By.CSS_SELECTOR, ".result mark")]

    assert (results, marked) == (["reader\nBasil needs <b>sun</b>"], ["Basil"])
    search('"basil')
    assert reader.find(".problem").text.startswith("This search is not valid: the phrase has no closing")


def test_markup_is_shown_as_text(readers: tuple[Browser, Browser], site: Site) -> None:
    """Also in the name of the author, in forms and in live updates."""
    one, _ = readers
    attack = "</textarea><script>document.title = 'attacked'</script><img src=x onerror=document.title='x'>"
    author = "<script>alert(1)</script>"
    one.log_in(site.port, author)

    one.write(attack)

    for browser in readers:
        comment = browser.comment(attack)
        assert browser.find(".author", comment).text == author
        assert browser.driver.title == "A garden on the balcony"
        browser.open()
        browser.comment(attack)
        assert browser.driver.title == "A garden on the balcony"
    assert one.find("details.edit textarea").get_attribute("value") == attack


def first_ids(browser: Browser) -> list[int]:
    """The comments with which a new connection of the open page begins."""
    url = browser.driver.execute_script("return new URL(list.dataset.events, location).href")
    with urllib.request.urlopen(url, timeout=scaled_timeout()) as stream:
        return next(json.loads(line[len("data:") :])["ids"] for line in stream if b'"ids"' in line)


def test_live_updates_stay_on_their_page(
    readers: tuple[Browser, Browser], service: ServerProcess, site: Site
) -> None:
    """A long list has pages, and each comment appears only on the page to which it belongs."""
    one, other = readers
    other.log_in(site.port, "another reader")
    with storeapi.connect(service.address) as client:
        post = client.posts.create(body="Bread", external_id="article:41", return_existing=True)

        def create(body: str, reply_to: storeapi.Comment | None = None) -> storeapi.Comment:
            return client.comments.create(
                post_id=post.id,
                body=body,
                author="writer",
                labels={"status": "visible"},
                reply_to_id=reply_to.id if reply_to else 0,
            )

        comments = [create(f"Comment {number}") for number in range(23)]
        one.open("/articles/41")
        other.open("/articles/41")
        assert one.bodies() == [f"Comment {number}" for number in range(22, 2, -1)]
        assert first_ids(one) == [comment.id for comment in reversed(comments[3:])]
        other.click("#more")
        other.comment("Comment 0")
        assert other.bodies() == ["Comment 2", "Comment 1", "Comment 0"]

        create("Newest")
        create("Between the pages", comments[3])
        create("On the second page", comments[2])
        create("On the first page", comments[22])
        create("Last on the second page", comments[0])

        one.comment("On the first page")
        other.comment("Last on the second page")
        assert one.bodies()[:4] == ["Newest", "Comment 22", "On the first page", "Comment 21"]
        assert one.bodies()[-2:] == ["Comment 4", "Comment 3"]
        assert other.bodies() == [
            "Comment 2",
            "On the second page",
            "Comment 1",
            "Comment 0",
            "Last on the second page",
        ]
        client.comments.delete(comments[2].id)
        other.until(lambda: "Comment 2" not in other.bodies())
    other.reply("On the second page", "A reply to it")
    assert other.bodies()[:4] == ["deleted", "On the second page", "A reply to it", "Comment 1"]


def test_page_of_another_user_leads_to_the_first_page(readers: tuple[Browser, Browser]) -> None:
    """The pages of moderators also have deleted comments, so they have other tokens."""
    reader, moderator = readers
    reader.open("/articles/41")
    reader.click("#more")
    reader.until(lambda: "page=" in reader.driver.current_url)

    moderator.driver.get(reader.driver.current_url)

    assert moderator.driver.current_url.endswith("/articles/41")
    moderator.comment("Newest")


def test_pages_continue_after_a_restart_of_the_service(
    readers: tuple[Browser, Browser], service: ServerProcess
) -> None:
    one, other = readers
    one.write("Before the restart")
    other.comment("Before the restart")

    service.kill()
    service.start()
    one.write("After the restart")

    other.comment("After the restart")


def test_pages_continue_after_a_restart_of_the_site(
    readers: tuple[Browser, Browser], service: ServerProcess, site: Site
) -> None:
    """A page shows what was changed while it had no connection."""
    reader, _ = readers
    reader.write("Before the restart of the site")
    with storeapi.connect(service.address) as client:
        post = client.posts.get(external_id="article:42")
        (comment,) = client.comments.list(post_id=post.id, order_by="id desc", limit=1)

        site.stop()
        client.comments.delete(comment.id)
        client.comments.create(
            post_id=post.id, body="During the restart", author="writer", labels={"status": "visible"}
        )
        site.start()

    reader.comment("During the restart")
    reader.until(lambda: "Before the restart of the site" not in reader.bodies())
    reader.write("After the restart of the site")


def test_form_of_another_site_is_refused(readers: tuple[Browser, Browser]) -> None:
    """A form needs the token of the session."""
    reader, _ = readers
    reader.driver.execute_script("document.querySelector('#write [name=csrf]').value = 'forged'")

    reader.send(reader.find("#write"), "Forged")

    assert "This form has expired" in reader.find("body").text
    reader.open()
    assert "Forged" not in reader.bodies()


def test_screenshot(readers: tuple[Browser, Browser], service: ServerProcess, tmp_path: Path) -> None:
    """COMMENT_SECTION_SCREENSHOT=docs/images/comment-section.png updates the picture of the documentation."""
    reader, moderator = readers
    with storeapi.connect(service.address) as client:
        client.posts.delete(client.posts.get(external_id="article:42").id, force=True)
    reader.open()
    reader.write("Which herbs survive a winter outside?")
    moderator.open()
    moderator.reply(
        "Which herbs survive a winter outside?", "Thyme, sage and chives do, if the box does not get wet."
    )
    reader.reply("Thyme, sage and chives do, if the box does not get wet.", "Then I put it below the roof.")
    moderator.moderate("Then I put it below the roof.")
    reader.open()
    reader.write("Basil comes inside in October.")
    reader.form("reply", reader.comment("Basil comes inside in October."))

    reader.driver.set_window_size(900, 1020)
    path = Path(os.environ.get("COMMENT_SECTION_SCREENSHOT", tmp_path / "comment-section.png"))
    path.write_bytes(reader.driver.get_screenshot_as_png())

    assert path.stat().st_size < 150_000


def test_document_shows_code_of_the_program() -> None:
    """Every Python block of docs/comment-section.md is a part of the example."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/comment-section.md").read_text(), re.DOTALL)
    program = PROGRAM.read_text()

    assert len(blocks) >= 5
    assert [block for block in blocks if block not in program] == []
