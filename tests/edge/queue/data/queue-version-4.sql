-- A queue written by version 4 of the schema (sshgrid 0.1.0): one job of each kind, a sweep, and a user.
BEGIN TRANSACTION;
CREATE TABLE attempt (
    job INTEGER NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    number INTEGER NOT NULL CHECK (number > 0),
    record TEXT NOT NULL, live INTEGER NOT NULL DEFAULT 0 CHECK (live IN (0, 1)),  -- JSON: model.AttemptRecord
    PRIMARY KEY (job, number)
) WITHOUT ROWID;
INSERT INTO "attempt" VALUES(-5242881,1,'{"number":1,"node":"h1","began":1790000008.0,"step":"uploading","outcome":{"type":"superseded","by":2},"ended":1790000010.0,"uploaded_bytes":0,"compiled":null,"toolchain":"","isolation":"","usage":{"started":0.0,"ended":0.0,"cpu_seconds":null,"peak_memory_bytes":null},"gpus":[],"batch":"","fetched":null,"backup":false,"why_compiled":"","upload_left_bytes":0}',0);
INSERT INTO "attempt" VALUES(-5242881,2,'{"number":2,"node":"h2","began":1790000009.0,"step":"uploading","outcome":{"type":"exited","code":0},"ended":1790000010.0,"uploaded_bytes":0,"compiled":null,"toolchain":"","isolation":"","usage":{"started":0.0,"ended":0.0,"cpu_seconds":null,"peak_memory_bytes":null},"gpus":[],"batch":"","fetched":null,"backup":true,"why_compiled":"","upload_left_bytes":0}',0);
INSERT INTO "attempt" VALUES(2,1,'{"number":1,"node":"h1","began":1790000002.0,"step":"running","outcome":null,"ended":null,"uploaded_bytes":0,"compiled":null,"toolchain":"","isolation":"","usage":{"started":0.0,"ended":0.0,"cpu_seconds":null,"peak_memory_bytes":null},"gpus":[],"batch":"","fetched":null,"backup":false,"why_compiled":"","upload_left_bytes":0}',1);
INSERT INTO "attempt" VALUES(3,1,'{"number":1,"node":"h2","began":1790000004.0,"step":"running","outcome":{"type":"exited","code":3},"ended":1790000005.0,"uploaded_bytes":0,"compiled":null,"toolchain":"","isolation":"","usage":{"started":0.0,"ended":0.0,"cpu_seconds":null,"peak_memory_bytes":null},"gpus":[],"batch":"","fetched":null,"backup":false,"why_compiled":"","upload_left_bytes":0}',0);
CREATE TABLE counter (
    name TEXT PRIMARY KEY NOT NULL,
    value INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO "counter" VALUES('late_news',0);
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
    ended REAL, forgiven INTEGER NOT NULL DEFAULT 0,
    UNIQUE (owner, submit_key),
    CHECK ((phase = 'done') = (verdict IS NOT NULL)),
    CHECK (phase <> 'running' OR last_attempt > 0)
);
INSERT INTO "job" VALUES(-5242881,'ann','task 5.1',0,1790000007.0,'done',2,0.0,0,'','','[]','{"type":"exited","code":0}',1790000010.0,0);
INSERT INTO "job" VALUES(1,'ann','k1',0,1790000000.0,'queued',0,0.0,0,'','','[]',NULL,NULL,0);
INSERT INTO "job" VALUES(2,'ann','k2',0,1790000001.0,'running',1,0.0,0,'','','[]',NULL,NULL,0);
INSERT INTO "job" VALUES(3,'ben','k3',0,1790000003.0,'done',1,0.0,0,'','','[]','{"type":"exited","code":3}',1790000005.0,0);
INSERT INTO "job" VALUES(4,'ann','k4',0,1790000006.0,'queued',0,0.0,0,'','HeldByUser','[]',NULL,NULL,0);
INSERT INTO "job" VALUES(5,'ann','k5',0,1790000007.0,'done',0,0.0,0,'','','[]','{"type":"swept","tasks":2,"failed":0,"left":1}',1790000011.0,0);
CREATE TABLE meta (
    name TEXT PRIMARY KEY NOT NULL,
    value TEXT NOT NULL
) WITHOUT ROWID;
INSERT INTO "meta" VALUES('grid','1785351c');
INSERT INTO "meta" VALUES('needs','0.1.0');
CREATE TABLE submission (
    job INTEGER PRIMARY KEY NOT NULL REFERENCES job (id) ON DELETE CASCADE,
    body TEXT NOT NULL  -- JSON: model.Submission
);
INSERT INTO "submission" VALUES(-5242881,'{"program":{"language":"python","entry":"sweep.py","files":[{"name":"sweep.py","sha256":"abababababababababababababababababababababababababababababababab","size":10,"executable":false}],"args":["MQ=="],"env":[],"stdin":null,"flags":[],"version":"","limits":{"wall_seconds":null,"memory_bytes":null,"output_bytes":null,"processes":null,"fetch_bytes":null},"data":[],"packs":[],"fetch":[]},"command":"sweep.py","name":"","on":"","retries":null,"priority":0,"on_host_loss":"relaunch","on_disconnect":"keep","interactive":false,"terminal":false,"keep_children":false,"wait_for_nodes":false,"sweep":null,"slots":1,"gpus":0,"verify_build":false}');
INSERT INTO "submission" VALUES(1,'{"program":{"language":"python","entry":"waits.py","files":[{"name":"waits.py","sha256":"abababababababababababababababababababababababababababababababab","size":10,"executable":false}],"args":["MQ=="],"env":[],"stdin":null,"flags":[],"version":"","limits":{"wall_seconds":null,"memory_bytes":null,"output_bytes":null,"processes":null,"fetch_bytes":null},"data":[],"packs":[],"fetch":[]},"command":"waits.py","name":"","on":"","retries":null,"priority":0,"on_host_loss":"relaunch","on_disconnect":"keep","interactive":false,"terminal":false,"keep_children":false,"wait_for_nodes":false,"sweep":null,"slots":1,"gpus":0,"verify_build":false}');
INSERT INTO "submission" VALUES(2,'{"program":{"language":"python","entry":"runs.py","files":[{"name":"runs.py","sha256":"abababababababababababababababababababababababababababababababab","size":10,"executable":false}],"args":["MQ=="],"env":[],"stdin":null,"flags":[],"version":"","limits":{"wall_seconds":null,"memory_bytes":null,"output_bytes":null,"processes":null,"fetch_bytes":null},"data":[],"packs":[],"fetch":[]},"command":"runs.py","name":"","on":"","retries":null,"priority":0,"on_host_loss":"relaunch","on_disconnect":"keep","interactive":false,"terminal":false,"keep_children":false,"wait_for_nodes":false,"sweep":null,"slots":1,"gpus":0,"verify_build":false}');
INSERT INTO "submission" VALUES(3,'{"program":{"language":"python","entry":"done.py","files":[{"name":"done.py","sha256":"abababababababababababababababababababababababababababababababab","size":10,"executable":false}],"args":["MQ=="],"env":[],"stdin":null,"flags":[],"version":"","limits":{"wall_seconds":null,"memory_bytes":null,"output_bytes":null,"processes":null,"fetch_bytes":null},"data":[],"packs":[],"fetch":[]},"command":"done.py","name":"","on":"","retries":null,"priority":0,"on_host_loss":"relaunch","on_disconnect":"keep","interactive":false,"terminal":false,"keep_children":false,"wait_for_nodes":false,"sweep":null,"slots":1,"gpus":0,"verify_build":false}');
INSERT INTO "submission" VALUES(4,'{"program":{"language":"python","entry":"held.py","files":[{"name":"held.py","sha256":"abababababababababababababababababababababababababababababababab","size":10,"executable":false}],"args":["MQ=="],"env":[],"stdin":null,"flags":[],"version":"","limits":{"wall_seconds":null,"memory_bytes":null,"output_bytes":null,"processes":null,"fetch_bytes":null},"data":[],"packs":[],"fetch":[]},"command":"held.py","name":"","on":"","retries":null,"priority":0,"on_host_loss":"relaunch","on_disconnect":"keep","interactive":false,"terminal":false,"keep_children":false,"wait_for_nodes":false,"sweep":null,"slots":1,"gpus":0,"verify_build":false}');
INSERT INTO "submission" VALUES(5,'{"program":{"language":"python","entry":"sweep.py","files":[{"name":"sweep.py","sha256":"abababababababababababababababababababababababababababababababab","size":10,"executable":false}],"args":["MQ=="],"env":[],"stdin":null,"flags":[],"version":"","limits":{"wall_seconds":null,"memory_bytes":null,"output_bytes":null,"processes":null,"fetch_bytes":null},"data":[],"packs":[],"fetch":[]},"command":"sweep.py","name":"","on":"","retries":null,"priority":0,"on_host_loss":"relaunch","on_disconnect":"keep","interactive":false,"terminal":false,"keep_children":false,"wait_for_nodes":false,"sweep":{"table":{"name":"table","sha256":"cdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcdcd","size":20,"executable":false},"tasks":2,"chosen":"","at_once":null,"halt":{"when":"never","reason":"fail","count":null,"percent":null},"backup":true,"inputs":null},"slots":1,"gpus":0,"verify_build":false}');
CREATE TABLE user (
    name TEXT PRIMARY KEY NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('admin', 'user')),
    disabled INTEGER NOT NULL DEFAULT 0 CHECK (disabled IN (0, 1)),
    password TEXT,
    created REAL NOT NULL,
    caps TEXT NOT NULL DEFAULT '{}'  -- JSON: model.Caps
) WITHOUT ROWID;
INSERT INTO "user" VALUES('ann','user',0,NULL,1790000000.0,'{"queued":null,"running":3,"wall_seconds":null,"output_bytes":null,"upload_bytes":null}');
CREATE TABLE user_key (
    user TEXT NOT NULL REFERENCES user (name) ON DELETE CASCADE,
    fingerprint TEXT NOT NULL,
    line TEXT NOT NULL,
    PRIMARY KEY (user, fingerprint)
) WITHOUT ROWID;
INSERT INTO "user_key" VALUES('ann','SHA256:x','ssh-ed25519 AAAA ann');
CREATE INDEX job_active ON job (phase, priority DESC, submitted, id) WHERE phase <> 'done';
CREATE VIEW job_row AS
SELECT
    id, owner, submitted, phase, priority, excluded, not_before, verdict, cancel_requested, held, ended,
    cancel_by, forgiven,
    (SELECT group_concat(record, ',') FROM (SELECT record FROM attempt WHERE job = job.id ORDER BY number)) AS attempts
FROM job;
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('job',5);
COMMIT;
PRAGMA application_id = 1397183044;
PRAGMA user_version = 4;
