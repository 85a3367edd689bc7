"""Whose turn it is: the tasks of a pool that come next, as a part of the statements that claim and release them."""

# No EXISTS: as a join, the planner may begin with the open jobs and sort all that is queued, for each claim.
JOB_IS_OPEN = """
    (SELECT j.state = 'open' AND (j.expires_at IS NULL OR j.expires_at > now())
     FROM wharf.jobs j WHERE j.id = t.job_id)
"""

POOL_RUNS = "NOT EXISTS (SELECT FROM wharf.pools p WHERE p.name = %(pool)s AND p.state = 'paused')"

READY = f"""
    t.pool = %(pool)s AND t.class = %(class)s AND t.state = 'queued' AND t.released_at IS NULL
    AND t.not_before <= now() AND {JOB_IS_OPEN}
"""

# The tasks that come next, tenant by tenant in turn, so that nobody's 100,000 inputs keep others waiting: a tenant's
# first one has the turn after those that it has in flight already, its second the turn after that. The tenants that
# wait are found by skipping through the index, not by reading all that is queued. `in_flight` comes before it.
IN_TURN = f"""
    waiting (tenant_id) AS (
        (SELECT t.tenant_id FROM wharf.tasks t WHERE {READY} AND {POOL_RUNS} ORDER BY t.tenant_id LIMIT 1)
        UNION ALL
        SELECT next.tenant_id FROM waiting w CROSS JOIN LATERAL (
            SELECT t.tenant_id FROM wharf.tasks t WHERE {READY} AND t.tenant_id > w.tenant_id
            ORDER BY t.tenant_id LIMIT 1
        ) next
    ),
    in_turn AS MATERIALIZED (
        SELECT task.id, coalesce(f.tasks, 0) + row_number() OVER (PARTITION BY w.tenant_id ORDER BY task.id) AS turn
        FROM waiting w
        LEFT JOIN in_flight f USING (tenant_id)
        CROSS JOIN LATERAL (
            SELECT t.id FROM wharf.tasks t
            WHERE {READY} AND t.tenant_id = w.tenant_id AND t.id <> ALL (%(busy)s)
            ORDER BY t.id LIMIT (SELECT least(%(candidates)s, ceil(2.0 * %(candidates)s / count(*))) FROM waiting)
        ) task
        ORDER BY turn, task.id LIMIT %(candidates)s
    )
"""
