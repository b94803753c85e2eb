-- walcache's own objects in the source database. A migration is never edited once released.

CREATE SCHEMA IF NOT EXISTS walcache;

-- What was applied, by the number that the file's name begins with.
CREATE TABLE walcache.migrations (
    version int PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

-- Epochs of leaders and generations of entries are drawn from here: the source outlives any Redis, and numbers are
-- never reused.
CREATE SEQUENCE walcache.epoch AS bigint MINVALUE 1 NO CYCLE;
