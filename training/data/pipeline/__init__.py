"""From raw corpora to corpora worth training on, in three stages on datatrove.

    CORPORA ─ filter ─▶ rules ─▶ kept + signatures ─▶ exact, near duplicates ─▶ corpora/   (filtering.py)
            ─ augment ▶ text ─▶ pivot language ─▶ text, what repeats the originals left out (augmentation.py)
            ─ select ─▶ document frequencies ─▶ scores against seeds ─▶ the best tenth     (selection.py)

Every stage reads a folder of corpora and writes another one, in the layout that `trident data prepare` takes, beside
`dropped/`, which says what was left out and why. One input file is one task, whatever runs the tasks: processes here,
Ray, or Slurm (execution.py).
"""
