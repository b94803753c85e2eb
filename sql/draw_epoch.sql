-- The next epoch or generation: higher than all before, also after Redis was lost.
SELECT nextval('walcache.epoch')
