"""A trace through the real batcher and policies, in simulated time.

requests (arrivals, lengths, deadlines) ─▶ replay ─▶ Batcher ─▶ policy
                                             ▲          │ batch
                                             └── costs ◀┘ (how long it takes)
"""
