"""From the task rows to RabbitMQ: releases what is ready, sees that nothing is lost there, and mends what a death left
behind. Any number of relays may run; each pool has one that looks after it."""
