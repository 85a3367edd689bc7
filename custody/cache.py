"""The result cache, as parts of the statements that submit, claim and end tasks: what a tenant's picture gave before,
with the same model, parameters and pipeline, is its answer again.

`wharf.recipe` makes the key of all that but the picture and the tenant. Of a tenant's tasks with the same key one runs
at a time, and the others, its twins, wait for its result: none for longer than a while, so that whoever dies, they go
on.
"""

from dataclasses import dataclass

# Of the CTE `answered`, tasks that have succeeded and whose `recipe` is in the cache. A trigger copies what is there.
ADD_ANSWERS = """
    INSERT INTO wharf.results (task_id, tenant_id, attempt, cached)
    SELECT a.id, a.tenant_id, a.attempt, true FROM answered a
"""

# As wharf.results has it, of the CTE `ended`, unless it is to leave no trace.
KEEP = """
    INSERT INTO wharf.cached_results
        (sha256, tenant_id, recipe, model, model_version, model_digest, engine, engine_version, verified,
         detections, timings)
    SELECT e.sha256, e.tenant_id, %(recipe)s, %(model)s, %(version)s, %(digest)s, %(engine)s, %(engine_version)s,
        %(verified)s, %(detections)s, %(timings)s
    FROM ended e WHERE %(recipe)s::bytea IS NOT NULL
    ON CONFLICT DO NOTHING
"""

# What becomes of each task of the CTE `next` whose job uses the cache: `answered`, `claimed`, or `refused` while a twin
# runs. The lock is for the moment in which two who claim at once do not see each other; neither ever waits for it.
JUDGED = """
    keyed AS MATERIALIZED (
        SELECT t.id, t.sha256, t.tenant_id, wharf.recipe(t.pool, %(digest)s, %(pipeline)s, j.parameters) AS recipe
        FROM next JOIN wharf.tasks t USING (id) JOIN wharf.jobs j ON j.id = t.job_id
        WHERE j.cache AND %(pipeline)s::text IS NOT NULL
    ),
    judged AS MATERIALIZED (
        SELECT k.id, k.recipe, CASE
            WHEN c.recipe IS NOT NULL THEN 'answered'
            WHEN row_number() OVER (PARTITION BY k.sha256, k.tenant_id, k.recipe ORDER BY k.id) > 1 THEN 'refused'
            WHEN (
                SELECT true FROM wharf.tasks w
                WHERE w.sha256 = k.sha256 AND w.tenant_id = k.tenant_id AND w.recipe = k.recipe
                  AND w.state = 'running' AND w.recipe_attempt = w.attempt LIMIT 1
            ) THEN 'refused'
            WHEN pg_try_advisory_xact_lock(hashtextextended(k.tenant_id::text || k.sha256::text || k.recipe::text, 0))
                THEN 'claimed'
            ELSE 'refused' END AS verdict
        FROM keyed k LEFT JOIN wharf.cached_results c USING (sha256, tenant_id, recipe)
    )
"""


@dataclass(frozen=True)
class Computation:
    """What a worker computes results with: the SHA-256 of its model, and its `pipeline`, which says what is done around
    the model, and by which engine. What is equal to the last letter gives the same result."""

    digest: bytes
    pipeline: str
