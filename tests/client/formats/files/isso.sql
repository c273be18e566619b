CREATE TABLE threads (id INTEGER PRIMARY KEY, uri VARCHAR(256) UNIQUE, title VARCHAR(256));
CREATE TABLE comments (
    tid REFERENCES threads(id), id INTEGER PRIMARY KEY, parent INTEGER, created FLOAT NOT NULL, modified FLOAT,
    mode INTEGER, remote_addr VARCHAR, text VARCHAR NOT NULL, author VARCHAR, email VARCHAR, website VARCHAR,
    likes INTEGER DEFAULT 0, dislikes INTEGER DEFAULT 0, voters BLOB NOT NULL, notification INTEGER DEFAULT 0);
INSERT INTO threads VALUES (1, '/blog/1/', 'First article'), (2, '/blog/2/', NULL), (3, '/empty/', 'Empty');
INSERT INTO comments VALUES
    (1, 1, NULL, 1700000000.25, NULL, 1, '192.0.2.0', 'Hello **you** 👋', 'Ann', 'ann@mail.example', 'https://ann.example', 2, 1, x'00', 0),
    (1, 2, 1, 1700000100.0, 1700000150.5, 2, '192.0.2.0', 'Waiting', NULL, NULL, NULL, 0, 0, x'00', 0),
    (1, 3, NULL, 1700000200.0, NULL, 4, '192.0.2.0', '', NULL, NULL, NULL, 0, 0, x'00', 0),
    (1, 4, 3, 1700000300.0, NULL, 1, NULL, 'Below a deleted one', 'Bob', NULL, NULL, 0, 0, x'00', 0),
    (1, 5, NULL, 1700000400.0, NULL, 4, NULL, '', NULL, NULL, NULL, 0, 0, x'00', 0),
    (2, 6, 1, 1700000500.0, NULL, 1, NULL, 'Parent on another page', 'Bob', NULL, NULL, 0, 0, x'00', 0),
    (2, 7, NULL, 'never', NULL, 1, NULL, CAST(x'4e554c00ff' AS TEXT), 'Eve', NULL, NULL, 0, 0, x'00', 0),
    (9, 8, NULL, 1700000600.0, NULL, 1, NULL, 'On no thread', 'Eve', NULL, NULL, 0, 0, x'00', 0);
