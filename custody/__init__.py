"""The domain that every process shares: files, jobs, tasks, results, models, tenants, and what keeps them true."""
