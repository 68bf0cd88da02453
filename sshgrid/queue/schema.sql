-- All SQL of sshgrid. database.py reads this file; each section begins with "-- name: X" and says what it is for.
-- JSON columns are written and read by msgspec (see model.py); the other columns exist because a query needs them.


-- name: schema_1
-- Version 1 of the queue. A later version adds a section schema_2 that changes this one; it never edits it.

-- What is said once for the whole file: `grid` (the 8 hex digits that mark our runs on the nodes), `needs` (the
-- sshgrid that can read this version).
CREATE TABLE meta (
    name TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- Things that are only counted: `late_news` = results that came from an attempt which was no longer the current one.
CREATE TABLE counter (
    name TEXT PRIMARY KEY NOT NULL,
    value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO counter (name, value) VALUES ('late_news', 0);

-- One row a job, small, because begin and settle rewrite it. AUTOINCREMENT: an id is never given twice, not even after
-- `rm`, since a folder on a silent node may still carry it.
CREATE TABLE job (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    owner TEXT NOT NULL,
    submit_key TEXT NOT NULL,
    priority INTEGER NOT NULL,
    submitted REAL NOT NULL,
    phase TEXT NOT NULL CHECK (phase IN ('queued', 'running', 'done')),
    last_attempt INTEGER NOT NULL DEFAULT 0,  -- the fence: news from a smaller number is late
    not_before REAL NOT NULL DEFAULT 0,
    cancel_requested INTEGER NOT NULL DEFAULT 0 CHECK (cancel_requested IN (0, 1)),
    cancel_by TEXT NOT NULL DEFAULT '',
    held TEXT NOT NULL DEFAULT '',
    excluded TEXT NOT NULL DEFAULT '[]',  -- JSON: names of nodes
    verdict TEXT,  -- JSON: model.Verdict
    ended REAL,
    UNIQUE (owner, submit_key),
    CHECK ((phase = 'done') = (verdict IS NOT NULL)),
    CHECK (phase <> 'running' OR last_attempt > 0)
);

-- The jobs that are not over, in the order in which they are looked at: finished jobs are not in it and cost nothing.
CREATE INDEX job_active ON job (phase, priority DESC, submitted, id) WHERE phase <> 'done';

-- What was asked for; apart from `job` because it may be long and never changes.
CREATE TABLE submission (
    job INTEGER PRIMARY KEY NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    body TEXT NOT NULL  -- JSON: model.Submission
);

-- Every try of every job.
CREATE TABLE attempt (
    job INTEGER NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    number INTEGER NOT NULL CHECK (number > 0),
    record TEXT NOT NULL,  -- JSON: model.AttemptRecord
    PRIMARY KEY (job, number)
) WITHOUT ROWID;

-- A job as model.Job has it, without its submission; its attempts are one JSON array.
CREATE VIEW job_row AS
SELECT
    id, owner, submitted, phase, priority, excluded, not_before, verdict, cancel_requested, held, ended,
    cancel_by,
    (SELECT group_concat(record, ',') FROM (SELECT record FROM attempt WHERE job = job.id ORDER BY number)) AS attempts
FROM job;


-- name: schema_2
-- Version 2: who may come through the door.

-- `password` is an Argon2id hash in the PHC format; NULL = keys alone.
CREATE TABLE user (
    name TEXT PRIMARY KEY NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('admin', 'user')),
    disabled INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
    password TEXT,
    created REAL NOT NULL,
    caps TEXT NOT NULL DEFAULT '{}'  -- JSON: model.Caps
) WITHOUT ROWID;

-- The public keys of a user, as in authorized_keys, without options.
CREATE TABLE user_key (
    user TEXT NOT NULL REFERENCES user (name) ON DELETE CASCADE,
    fingerprint TEXT NOT NULL,
    line TEXT NOT NULL,
    PRIMARY KEY (user, fingerprint)
) WITHOUT ROWID;


-- name: schema_3
-- Version 3: sweeps. A row of `job` with a negative id is a task (see model.task_id), made when the task begins; its
-- submission is its own. An earlier sshgrid could not read such rows.

-- Attempts up to this number do not count against the job: somebody has asked for a retry.
ALTER TABLE job ADD COLUMN forgiven INTEGER NOT NULL DEFAULT 0;

DROP VIEW job_row;
CREATE VIEW job_row AS
SELECT
    id, owner, submitted, phase, priority, excluded, not_before, verdict, cancel_requested, held, ended,
    cancel_by, forgiven,
    (SELECT group_concat(record, ',') FROM (SELECT record FROM attempt WHERE job = job.id ORDER BY number)) AS attempts
FROM job;


-- name: schema_4
-- Version 4: two attempts at one job may live at the same time. An earlier sshgrid would take one of them for late news.

-- The fence: 1 = news of this attempt counts. Of a job that runs at least one is, of any other none.
ALTER TABLE attempt ADD COLUMN live INTEGER NOT NULL DEFAULT 0 CHECK (live IN (0, 1));
UPDATE attempt SET live = 1 WHERE (job, number) IN (SELECT id, last_attempt FROM job WHERE phase = 'running');


-- name: schema_5
-- Version 5: names as in docs/glossary.md. An attempt that was begun beside a running one is speculative, no longer a
-- "backup"; a sweep that is over is "sweep-done", no longer "swept". Late results were counted, but never shown.
UPDATE attempt SET record = json_remove(
    json_set(record, '$.speculative', json(iif(json_extract(record, '$.backup'), 'true', 'false'))), '$.backup'
);
UPDATE job SET verdict = json_set(verdict, '$.type', 'sweep-done') WHERE json_extract(verdict, '$.type') = 'swept';
DROP TABLE counter;


-- name: set_meta
-- Remembers one fact about the file.
INSERT OR REPLACE INTO meta (name, value) VALUES (:name, :value);

-- name: get_meta
-- One fact about the file.
SELECT value FROM meta WHERE name = :name;


-- name: job_of_key
-- The job that this submission already became, when it was sent before.
SELECT id FROM job WHERE owner = :owner AND submit_key = :key;

-- name: add_job
-- Accepts a job.
INSERT INTO job (owner, submit_key, priority, submitted, phase) VALUES (:owner, :key, :priority, :submitted, 'queued');

-- name: add_task
-- A task of a sweep, claimed in the moment in which it becomes a row.
INSERT INTO job (id, owner, submit_key, priority, submitted, phase, last_attempt)
VALUES (:id, :owner, :key, :priority, :submitted, 'running', 1);

-- name: add_submission
-- Keeps what was asked for.
INSERT INTO submission (job, body) VALUES (:id, :body);


-- name: job_by_id
-- One job.
SELECT * FROM job_row WHERE id = :id;

-- name: jobs_by_ids
-- The jobs of a selector, in order; numbers that name no job are left out.
SELECT * FROM job_row WHERE id IN (SELECT value FROM json_each(:ids)) ORDER BY id;

-- name: jobs_queued
-- What waits, the most urgent first and then the oldest.
SELECT * FROM job_row WHERE phase = 'queued' AND phase <> 'done' ORDER BY priority DESC, submitted, id;

-- name: jobs_running
-- What runs. Read at every start of the master, to look for the runs again.
SELECT * FROM job_row WHERE phase = 'running' AND phase <> 'done' ORDER BY id;

-- name: jobs_active
-- What waits or runs, of one owner or of all ('').
SELECT * FROM job_row
WHERE phase IN ('queued', 'running') AND phase <> 'done' AND id > 0 AND (:owner = '' OR owner = :owner) ORDER BY id;

-- name: tasks_active
-- The tasks that wait for another attempt or run.
SELECT * FROM job_row WHERE phase IN ('queued', 'running') AND phase <> 'done' AND id < 0 ORDER BY id DESC;

-- name: task_verdicts
-- Of each task of a sweep that has begun where it stands and how it ended, in the order in which they ended.
SELECT id, phase, verdict FROM job WHERE id BETWEEN :first AND :last ORDER BY ended, id DESC;

-- name: tasks_of
-- The tasks of a sweep that have begun, by number.
SELECT * FROM job_row WHERE id BETWEEN :first AND :last ORDER BY id DESC;

-- name: jobs_all
-- Everything, of one owner or of all (''), that was not over before `since`.
SELECT * FROM job_row
WHERE id > 0 AND (:owner = '' OR owner = :owner) AND (ended IS NULL OR ended >= :since) ORDER BY id;

-- name: submissions
-- What was asked for, of many jobs at once.
SELECT job, body FROM submission WHERE job IN (SELECT value FROM json_each(:ids));

-- name: ids
-- All job numbers, of one owner or of all (''), in order.
SELECT id FROM job WHERE id > 0 AND (:owner = '' OR owner = :owner) ORDER BY id;

-- name: tally
-- How many jobs of one owner or of all ('') stand where and ended how.
SELECT phase, verdict, count(*) FROM job WHERE id > 0 AND (:owner = '' OR owner = :owner) GROUP BY phase, verdict;

-- name: blobs
-- Every file that some job still needs. A task needs what its sweep needs.
SELECT json_extract(file.value, '$.sha256') FROM submission, json_each(body, '$.program.files') AS file WHERE job > 0
UNION
SELECT json_extract(file.value, '$.sha256') FROM submission, json_each(body, '$.program.data') AS file WHERE job > 0
UNION
SELECT json_extract(file.value, '$.sha256') FROM submission, json_each(body, '$.program.packs') AS file WHERE job > 0
UNION
SELECT json_extract(body, '$.program.stdin.sha256') FROM submission
WHERE job > 0 AND json_extract(body, '$.program.stdin.sha256') IS NOT NULL
UNION
SELECT json_extract(body, '$.sweep.table.sha256') FROM submission
WHERE job > 0 AND json_extract(body, '$.sweep.table.sha256') IS NOT NULL
UNION
SELECT json_extract(body, '$.sweep.inputs.sha256') FROM submission
WHERE job > 0 AND json_extract(body, '$.sweep.inputs.sha256') IS NOT NULL;

-- name: input_lists
-- The lists that name what the tasks of sweeps read.
SELECT DISTINCT json_extract(body, '$.sweep.inputs.sha256') FROM submission
WHERE job > 0 AND json_extract(body, '$.sweep.inputs.sha256') IS NOT NULL;


-- name: begin_job
-- Claims a waiting job; no row changes when it no longer waits, is held or shall be cancelled.
UPDATE job SET phase = 'running', last_attempt = last_attempt + 1
WHERE id = :id AND phase = 'queued' AND held = '' AND cancel_requested = 0;

-- name: begin_speculative
-- Claims a second attempt at a job that runs; no row changes when it no longer does, shall be cancelled, or when anything
-- but its newest attempt is live.
UPDATE job SET last_attempt = last_attempt + 1
WHERE id = :id AND phase = 'running' AND cancel_requested = 0
AND last_attempt = (SELECT max(number) FROM attempt WHERE job = :id AND live = 1)
AND 1 = (SELECT count(*) FROM attempt WHERE job = :id AND live = 1);

-- name: last_attempt
-- The number of the newest attempt of a job.
SELECT last_attempt FROM job WHERE id = :id;

-- name: add_attempt
-- Records the claim.
INSERT INTO attempt (job, number, record, live) VALUES (:id, :number, :record, 1);

-- name: note_attempt
-- Progress of a live attempt; no row changes when it is not live.
UPDATE attempt SET record = :record WHERE job = :id AND number = :number AND live = 1;

-- name: settle_job
-- Ends a job's run, as one of its live attempts has ended: back into the queue, or done. A cancel or a hold that was asked
-- for meanwhile stays asked for.
UPDATE job SET
    phase = :phase, not_before = :not_before, excluded = :excluded, verdict = :verdict, ended = :ended,
    held = CASE WHEN :phase = 'done' THEN '' WHEN :held = '' THEN held ELSE :held END
WHERE id = :id AND phase = 'running'
AND EXISTS (SELECT 1 FROM attempt WHERE job = :id AND number = :number AND live = 1);

-- name: note_settled
-- The last word of an attempt; settle_job has proved that it is live. With it no other one is either.
UPDATE attempt SET live = 0, record = CASE number WHEN :number THEN :record ELSE record END
WHERE job = :id AND live = 1;

-- name: note_superseded
-- The last word of an attempt that was live beside the one that settled the job.
UPDATE attempt SET record = :record WHERE job = :id AND number = :number;

-- name: leave_attempt
-- The last word of an attempt that leaves its job to another one; no row changes when it is not live, or there is none.
UPDATE attempt SET live = 0, record = :record
WHERE job = :id AND number = :number AND live = 1
AND EXISTS (SELECT 1 FROM attempt AS other WHERE other.job = :id AND other.number <> :number AND other.live = 1);

-- name: superseded
-- Attempts at tasks of a sweep that another one has superseded.
SELECT job, record FROM attempt
WHERE job BETWEEN :first AND :last AND json_extract(record, '$.outcome.type') = 'superseded';

-- name: undo_begin_task
-- A task whose first attempt never began, and never will, is again what it was before: only a number.
DELETE FROM job WHERE id = :id AND id < 0 AND last_attempt = 1 AND phase = 'running';

-- name: finish_job
-- Ends a job that waits (cancelled, or no node is left to try).
UPDATE job SET phase = 'done', verdict = :verdict, ended = :ended, held = '' WHERE id = :id AND phase = 'queued';

-- name: blobs_of
-- Every file that some job of one owner needs.
SELECT json_extract(file.value, '$.sha256') FROM job
JOIN submission ON submission.job = job.id, json_each(body, '$.program.files') AS file
WHERE owner = :owner AND job.id > 0
UNION
SELECT json_extract(file.value, '$.sha256') FROM job
JOIN submission ON submission.job = job.id, json_each(body, '$.program.data') AS file
WHERE owner = :owner
UNION
SELECT json_extract(file.value, '$.sha256') FROM job
JOIN submission ON submission.job = job.id, json_each(body, '$.program.packs') AS file
WHERE owner = :owner
UNION
SELECT json_extract(body, '$.program.stdin.sha256') FROM job JOIN submission ON submission.job = job.id
WHERE owner = :owner AND job.id > 0 AND json_extract(body, '$.program.stdin.sha256') IS NOT NULL
UNION
SELECT json_extract(body, '$.sweep.table.sha256') FROM job JOIN submission ON submission.job = job.id
WHERE owner = :owner AND job.id > 0 AND json_extract(body, '$.sweep.table.sha256') IS NOT NULL
UNION
SELECT json_extract(body, '$.sweep.inputs.sha256') FROM job JOIN submission ON submission.job = job.id
WHERE owner = :owner AND job.id > 0 AND json_extract(body, '$.sweep.inputs.sha256') IS NOT NULL;

-- name: retry_job
-- Queues a job that is over once more, as if nothing had been held against it.
UPDATE job SET
    phase = 'queued', verdict = NULL, ended = NULL, cancel_requested = 0, cancel_by = '', held = '', excluded = '[]',
    not_before = 0, forgiven = last_attempt
WHERE id = :id AND phase = 'done';

-- name: request_cancel
-- Marks a job that is not over: it must end, not start again. The newest ask is remembered (INT may be followed by KILL).
UPDATE job SET cancel_requested = 1, cancel_by = :by WHERE id = :id AND phase <> 'done';

-- name: hold_job
-- Keeps a job from starting, with the reason; '' lets it go.
UPDATE job SET held = :why WHERE id = :id AND phase <> 'done';

-- name: remove_job
-- Forgets a finished job with its submission and attempts.
DELETE FROM job WHERE id = :id AND phase = 'done';

-- name: remove_tasks
-- Forgets the tasks of a sweep.
DELETE FROM job WHERE id BETWEEN :first AND :last;


-- name: users
-- Everybody who may come through the door.
SELECT name, role, disabled, password, created, caps FROM user ORDER BY name;

-- name: user_keys
-- The keys of all of them.
SELECT user, fingerprint, line FROM user_key ORDER BY user, fingerprint;

-- name: put_user
-- Adds a user, or changes one.
INSERT INTO user (name, role, disabled, password, created, caps)
VALUES (:name, :role, :disabled, :password, :created, :caps)
ON CONFLICT (name) DO UPDATE SET
    role = excluded.role, disabled = excluded.disabled, password = excluded.password, caps = excluded.caps;

-- name: remove_user
-- Removes a user, with the keys.
DELETE FROM user WHERE name = :name;

-- name: remove_keys
-- Removes all keys of a user, before those that are left are written again.
DELETE FROM user_key WHERE user = :name;

-- name: add_key
-- Adds a key of a user.
INSERT INTO user_key (user, fingerprint, line) VALUES (:name, :fingerprint, :line);
