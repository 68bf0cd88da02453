-- All SQL of sshgrid. database.py reads this file; each section begins with "-- name: X" and a line about its purpose.
-- JSON columns are written and read by msgspec (see model.py); a value has its own column only if a query needs it.


-- name: schema_1
-- Version 1 of the queue. Never edit the SQL of a version: add a section schema_N that changes it.

-- Facts about the whole file: `grid` (8 hex digits in the names of its runs on the nodes) and `needs` (the oldest
-- sshgrid that can read this version).
CREATE TABLE meta (
    name TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
) WITHOUT ROWID;

-- Counters: `late_news` = results of attempts that were no longer the current one.
CREATE TABLE counter (
    name TEXT PRIMARY KEY NOT NULL,
    value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO counter (name, value) VALUES ('late_news', 0);

-- One row for each job. The row is small because begin and settle rewrite it. AUTOINCREMENT: an id is never used again,
-- not even after `rm`, because a folder on an unreachable node may still have it in its name.
CREATE TABLE job (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    owner TEXT NOT NULL,
    submit_key TEXT NOT NULL,
    priority INTEGER NOT NULL,
    submitted REAL NOT NULL,
    phase TEXT NOT NULL CHECK (phase IN ('queued', 'running', 'done')),
    last_attempt INTEGER NOT NULL DEFAULT 0,  -- the fence: results of smaller numbers are dropped
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

-- The queued and running jobs, in the order of the queue. Finished jobs are not in this index and cost no time.
CREATE INDEX job_active ON job (phase, priority DESC, submitted, id) WHERE phase <> 'done';

-- The submission of each job. It is not in `job` because it may be long and never changes.
CREATE TABLE submission (
    job INTEGER PRIMARY KEY NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    body TEXT NOT NULL  -- JSON: model.Submission
);

-- Every attempt of every job.
CREATE TABLE attempt (
    job INTEGER NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    number INTEGER NOT NULL CHECK (number > 0),
    record TEXT NOT NULL,  -- JSON: model.AttemptRecord
    PRIMARY KEY (job, number)
) WITHOUT ROWID;

-- The fields of model.Job, without the submission; the attempts are the items of a JSON array.
CREATE VIEW job_row AS
SELECT
    id, owner, submitted, phase, priority, excluded, not_before, verdict, cancel_requested, held, ended,
    cancel_by,
    (SELECT group_concat(record, ',') FROM (SELECT record FROM attempt WHERE job = job.id ORDER BY number)) AS attempts
FROM job;


-- name: schema_2
-- Version 2: the users of the SSH gateway.

-- `password` is an Argon2id hash in the PHC format; NULL = no password, only keys.
CREATE TABLE user (
    name TEXT PRIMARY KEY NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('admin', 'user')),
    disabled INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
    password TEXT,
    created REAL NOT NULL,
    caps TEXT NOT NULL DEFAULT '{}'  -- JSON: model.Caps
) WITHOUT ROWID;

-- The public keys of an account, as in authorized_keys, without options.
CREATE TABLE user_key (
    user TEXT NOT NULL REFERENCES user (name) ON DELETE CASCADE,
    fingerprint TEXT NOT NULL,
    line TEXT NOT NULL,
    PRIMARY KEY (user, fingerprint)
) WITHOUT ROWID;


-- name: schema_3
-- Version 3: sweeps. A row of `job` with a negative id is a task (see model.task_id). The row is added when the task
-- begins, with a submission of the task. An earlier sshgrid cannot read such rows.

-- Attempts up to this number do not count: `retry` was requested after them.
ALTER TABLE job ADD COLUMN forgiven INTEGER NOT NULL DEFAULT 0;

DROP VIEW job_row;
CREATE VIEW job_row AS
SELECT
    id, owner, submitted, phase, priority, excluded, not_before, verdict, cancel_requested, held, ended,
    cancel_by, forgiven,
    (SELECT group_concat(record, ',') FROM (SELECT record FROM attempt WHERE job = job.id ORDER BY number)) AS attempts
FROM job;


-- name: schema_4
-- Version 4: a job may have two live attempts. An earlier sshgrid would drop the result of one of them.

-- The fence: 1 = the attempt is live: its result counts. A running job has one or two live attempts, other jobs none.
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
-- Stores a fact about the file.
INSERT OR REPLACE INTO meta (name, value) VALUES (:name, :value);

-- name: get_meta
-- A fact about the file.
SELECT value FROM meta WHERE name = :name;


-- name: job_of_key
-- The job of an earlier submission with this key.
SELECT id FROM job WHERE owner = :owner AND submit_key = :key;

-- name: add_job
-- Adds a job.
INSERT INTO job (owner, submit_key, priority, submitted, phase) VALUES (:owner, :key, :priority, :submitted, 'queued');

-- name: add_task
-- Adds a task of a sweep, which runs from the start.
INSERT INTO job (id, owner, submit_key, priority, submitted, phase, last_attempt)
VALUES (:id, :owner, :key, :priority, :submitted, 'running', 1);

-- name: add_submission
-- Adds the submission of a job.
INSERT INTO submission (job, body) VALUES (:id, :body);


-- name: job_by_id
-- One job.
SELECT * FROM job_row WHERE id = :id;

-- name: jobs_by_ids
-- Jobs by id, in order; ids without a job are left out.
SELECT * FROM job_row WHERE id IN (SELECT value FROM json_each(:ids)) ORDER BY id;

-- name: jobs_queued
-- The queued jobs and tasks: highest priority first, then oldest.
SELECT * FROM job_row WHERE phase = 'queued' AND phase <> 'done' ORDER BY priority DESC, submitted, id;

-- name: jobs_running
-- The running jobs and tasks. The master reads them when it starts, to find their runs on the nodes.
SELECT * FROM job_row WHERE phase = 'running' AND phase <> 'done' ORDER BY id;

-- name: jobs_active
-- The queued and running jobs of one owner, or of all ('').
SELECT * FROM job_row
WHERE phase IN ('queued', 'running') AND phase <> 'done' AND id > 0 AND (:owner = '' OR owner = :owner) ORDER BY id;

-- name: tasks_active
-- The tasks that run, or wait for another attempt.
SELECT * FROM job_row WHERE phase IN ('queued', 'running') AND phase <> 'done' AND id < 0 ORDER BY id DESC;

-- name: task_verdicts
-- Phase and verdict of each task of a sweep that has begun, in the order of their ends.
SELECT id, phase, verdict FROM job WHERE id BETWEEN :first AND :last ORDER BY ended, id DESC;

-- name: tasks_of
-- The tasks of a sweep that have begun, by number.
SELECT * FROM job_row WHERE id BETWEEN :first AND :last ORDER BY id DESC;

-- name: jobs_all
-- The jobs of one owner, or of all (''), that did not end before `since`.
SELECT * FROM job_row
WHERE id > 0 AND (:owner = '' OR owner = :owner) AND (ended IS NULL OR ended >= :since) ORDER BY id;

-- name: submissions
-- The submissions of many jobs.
SELECT job, body FROM submission WHERE job IN (SELECT value FROM json_each(:ids));

-- name: ids
-- The ids of the jobs of one owner, or of all (''), in order.
SELECT id FROM job WHERE id > 0 AND (:owner = '' OR owner = :owner) ORDER BY id;

-- name: tally
-- The number of jobs of one owner, or of all (''), for each phase and verdict.
SELECT phase, verdict, count(*) FROM job WHERE id > 0 AND (:owner = '' OR owner = :owner) GROUP BY phase, verdict;

-- name: blobs
-- The SHA-256 of every file that a job needs. The files of a task are those of its sweep.
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
-- The SHA-256 of the lists that name the inputs of tasks.
SELECT DISTINCT json_extract(body, '$.sweep.inputs.sha256') FROM submission
WHERE job > 0 AND json_extract(body, '$.sweep.inputs.sha256') IS NOT NULL;


-- name: begin_job
-- Claims a queued job. No row changes when the job is not queued, is held, or is to be cancelled.
UPDATE job SET phase = 'running', last_attempt = last_attempt + 1
WHERE id = :id AND phase = 'queued' AND held = '' AND cancel_requested = 0;

-- name: begin_speculative
-- Claims a second attempt of a running job. No row changes when the job does not run or is to be cancelled, or when its
-- newest attempt is not the only live one.
UPDATE job SET last_attempt = last_attempt + 1
WHERE id = :id AND phase = 'running' AND cancel_requested = 0
AND last_attempt = (SELECT max(number) FROM attempt WHERE job = :id AND live = 1)
AND 1 = (SELECT count(*) FROM attempt WHERE job = :id AND live = 1);

-- name: last_attempt
-- The number of the newest attempt of a job.
SELECT last_attempt FROM job WHERE id = :id;

-- name: add_attempt
-- Adds the claimed attempt.
INSERT INTO attempt (job, number, record, live) VALUES (:id, :number, :record, 1);

-- name: note_attempt
-- Writes the progress of an attempt. No row changes when it is not live.
UPDATE attempt SET record = :record WHERE job = :id AND number = :number AND live = 1;

-- name: settle_job
-- Ends a running job after one of its live attempts has ended: it is queued again, or done. A cancel or a hold that was
-- requested meanwhile stays.
UPDATE job SET
    phase = :phase, not_before = :not_before, excluded = :excluded, verdict = :verdict, ended = :ended,
    held = CASE WHEN :phase = 'done' THEN '' WHEN :held = '' THEN held ELSE :held END
WHERE id = :id AND phase = 'running'
AND EXISTS (SELECT 1 FROM attempt WHERE job = :id AND number = :number AND live = 1);

-- name: note_settled
-- Writes the outcome of an attempt that settle_job has found live. After it, no attempt of the job is live.
UPDATE attempt SET live = 0, record = CASE number WHEN :number THEN :record ELSE record END
WHERE job = :id AND live = 1;

-- name: note_superseded
-- Writes the outcome of the attempt that was live beside the one that settled the job.
UPDATE attempt SET record = :record WHERE job = :id AND number = :number;

-- name: leave_attempt
-- Writes the outcome of an attempt whose job continues with another one. No row changes unless both are live.
UPDATE attempt SET live = 0, record = :record
WHERE job = :id AND number = :number AND live = 1
AND EXISTS (SELECT 1 FROM attempt AS other WHERE other.job = :id AND other.number <> :number AND other.live = 1);

-- name: superseded
-- The superseded attempts of the tasks of a sweep.
SELECT job, record FROM attempt
WHERE job BETWEEN :first AND :last AND json_extract(record, '$.outcome.type') = 'superseded';

-- name: undo_begin_task
-- Removes the row of a task that its node never started.
DELETE FROM job WHERE id = :id AND id < 0 AND last_attempt = 1 AND phase = 'running';

-- name: finish_job
-- Ends a queued job that is cancelled, or that no node can run.
UPDATE job SET phase = 'done', verdict = :verdict, ended = :ended, held = '' WHERE id = :id AND phase = 'queued';

-- name: blobs_of
-- The SHA-256 of every file that a job of one owner needs.
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
-- Queues a finished job again. Its earlier attempts no longer count.
UPDATE job SET
    phase = 'queued', verdict = NULL, ended = NULL, cancel_requested = 0, cancel_by = '', held = '', excluded = '[]',
    not_before = 0, forgiven = last_attempt
WHERE id = :id AND phase = 'done';

-- name: request_cancel
-- Marks an unfinished job: it starts no more attempts. The last request counts (INT may be followed by KILL).
UPDATE job SET cancel_requested = 1, cancel_by = :by WHERE id = :id AND phase <> 'done';

-- name: hold_job
-- Holds a job, with the reason; '' releases it.
UPDATE job SET held = :why WHERE id = :id AND phase <> 'done';

-- name: remove_job
-- Removes a finished job with its submission and attempts.
DELETE FROM job WHERE id = :id AND phase = 'done';

-- name: remove_tasks
-- Removes the tasks of a sweep.
DELETE FROM job WHERE id BETWEEN :first AND :last;


-- name: users
-- All accounts.
SELECT name, role, disabled, password, created, caps FROM user ORDER BY name;

-- name: user_keys
-- The keys of all accounts.
SELECT user, fingerprint, line FROM user_key ORDER BY user, fingerprint;

-- name: put_user
-- Adds an account, or replaces it.
INSERT INTO user (name, role, disabled, password, created, caps)
VALUES (:name, :role, :disabled, :password, :created, :caps)
ON CONFLICT (name) DO UPDATE SET
    role = excluded.role, disabled = excluded.disabled, password = excluded.password, caps = excluded.caps;

-- name: remove_user
-- Removes an account with its keys.
DELETE FROM user WHERE name = :name;

-- name: remove_keys
-- Removes all keys of an account, before they are written again.
DELETE FROM user_key WHERE user = :name;

-- name: add_key
-- Adds a key of an account.
INSERT INTO user_key (user, fingerprint, line) VALUES (:name, :fingerprint, :line);
