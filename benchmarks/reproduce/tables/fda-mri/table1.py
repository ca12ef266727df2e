"""Table 1: surface Dice of every source network on every scanner of CC359; the diagonal by 3-fold cross-validation within a scanner."""

from __future__ import annotations

from collections.abc import Iterator

from grids.fda_mri import CC359, HOSPITALS, HOURS, PACKAGE, PAPER, SEED, SMALL, SMOKE, unadapted
from table import Cell, Claim, Scale, Table, csv_mean


def cells(scale: Scale) -> Iterator[Cell]:
    """Rows are targets, columns sources; on the diagonal a repetition is the mean of three folds."""
    read = csv_mean("scores.csv", "surface_dice")
    sites = scale.pick(paper={site: site for site in CC359}, small=HOSPITALS, smoke={site: site for site in CC359})
    for source in list(sites)[: 1 if scale.name == "smoke" else None]:
        for target in sites:
            folds = range(3) if source == target else [None]
            runs = [
                [unadapted(scale, sites[source], sites[target], seed, fold) for fold in folds]
                for seed in scale.seeds((SEED,))
            ]
            yield Cell((target,), f"source_{source}", runs, read)


TABLE = Table(
    package=PACKAGE,
    name="table1",
    title="surface Dice without adaptation, by target (row) and source (column)",
    keys=("target_domain",),
    columns=tuple(f"source_{site}" for site in CC359),
    cells=cells,
    claims=tuple(
        Claim((source,), (target,), (f"source_{source}",)) for source in CC359 for target in CC359 if target != source
    ),
    scales={
        "paper": PAPER,
        "small": f"{SMALL}Hospitals CS, DU, FG and HT stand in the rows and columns of sm15, sm3, ge15 and ge3, with which they have "
        "nothing else in common.",
        "smoke": SMOKE,
    },
    hours=HOURS,
    hours_from="24 trainings of 10,000 steps of 16 crops of 160 pixels at about 0.08 s",
)
