"""Whose turn it is: the tasks of a pool that come next, as a part of the statements that claim and release them."""

# No EXISTS here and below: as a join, the planner may begin with the open jobs, or read all that is queued, each time.
JOB_IS_OPEN = """
    (SELECT j.state = 'open' AND (j.expires_at IS NULL OR j.expires_at > now())
     FROM wharf.jobs j WHERE j.id = t.job_id)
"""

POOL_RUNS = "NOT EXISTS (SELECT FROM wharf.pools p WHERE p.name = %(pool)s AND p.state = 'paused')"

QUEUED = "t.pool = %(pool)s AND t.class = %(class)s AND t.state = 'queued'"

READY = f"{QUEUED} AND t.not_before <= now() AND {JOB_IS_OPEN}"

FROM_THE_FIRST = "'00000000-0000-0000-0000-000000000000'::uuid"


def in_turn(ready: str = READY, beyond: str = FROM_THE_FIRST) -> str:
    """The CTE `in_turn`: up to %(candidates)s of the tasks that are `ready`, tenant by tenant in turn, so that nobody's
    100,000 inputs keep others waiting: a tenant's first one has the turn after those that it has in flight already,
    its second the turn after that. `beyond` gives the id after which to begin with tenant `w.tenant_id`.

    The tenants are found by skipping through the index, not by reading all that is queued. The CTE `in_flight
    (tenant_id, tasks)` comes before this one."""
    return f"""
    waiting (tenant_id) AS (
        (SELECT t.tenant_id FROM wharf.tasks t WHERE {QUEUED} AND {POOL_RUNS} ORDER BY t.tenant_id LIMIT 1)
        UNION ALL
        SELECT next.tenant_id FROM waiting w CROSS JOIN LATERAL (
            SELECT t.tenant_id FROM wharf.tasks t WHERE {QUEUED} AND t.tenant_id > w.tenant_id
            ORDER BY t.tenant_id LIMIT 1
        ) next
    ),
    with_ready AS MATERIALIZED (
        SELECT w.tenant_id, first.beyond FROM waiting w CROSS JOIN LATERAL (SELECT {beyond} AS beyond) first
        WHERE (
            SELECT true FROM wharf.tasks t WHERE {ready} AND t.tenant_id = w.tenant_id AND t.id > first.beyond
            ORDER BY t.id LIMIT 1
        )
    ),
    in_turn AS MATERIALIZED (
        SELECT task.id, coalesce(f.tasks, 0) + row_number() OVER (PARTITION BY w.tenant_id ORDER BY task.id) AS turn
        FROM with_ready w
        LEFT JOIN in_flight f USING (tenant_id)
        CROSS JOIN LATERAL (
            SELECT t.id FROM wharf.tasks t WHERE {ready} AND t.tenant_id = w.tenant_id AND t.id > w.beyond
            ORDER BY t.id LIMIT (SELECT least(%(candidates)s, ceil(2.0 * %(candidates)s / count(*))) FROM with_ready)
        ) task
        ORDER BY turn, task.id LIMIT %(candidates)s
    )
    """
