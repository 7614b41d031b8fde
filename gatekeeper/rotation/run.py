# SPDX-License-Identifier: GPL-3.0-or-later
"""All rotations that are meant, one after the other."""

from dataclasses import dataclass, field

from gatekeeper.rotation.configured_keys import KeyConfiguration, Wanted
from gatekeeper.rotation.due import Plans, World, means
from gatekeeper.rotation.state import RotationRefused, RotationStage, load, locked
from gatekeeper.rotation.step import Rotation, StepResult


@dataclass(slots=True)
class Run:
    """What came of all rotations in one run; `refused` says which could not be begun, and why."""

    outcomes: list[StepResult] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


async def rotate(world: World, wanted: Wanted) -> Run:
    """Go on with every rotation that is meant, and begin those that are due. Raises Refused, OSError."""
    tables, run = KeyConfiguration(world.config), Run()
    with locked(tables.folders):
        begun = [(folder, state) for folder in tables.folders for state in load(folder)]
        plans = Plans(world, tables, begun)
        going = [
            (folder, state)
            for folder, state in begun
            if state.stage is not RotationStage.RETIRED and means(wanted, state.domains, state.old, state.new)
        ]
        for key in tables.keys:
            past = plans.of(key)
            if not means(wanted, key.domains, key.which) or (
                past is not None and past.stage is not RotationStage.RETIRED
            ):
                continue
            if plans.due(wanted, key, past):
                try:
                    going.append(plans.begin(key))
                except RotationRefused as refused:
                    run.refused.append(str(refused))
            elif past is not None and wanted.is_named:
                run.outcomes.append(StepResult(past))
        for folder, state in going:
            run.outcomes.append(await Rotation(world, tables, folder, state).advance())
    if wanted.is_named and wanted.older is None and not (run.outcomes or run.refused):
        what = [problem for problem in tables.problems if not problem.warning]
        raise RotationRefused("\n".join([f"the tables of [signing] have no key {wanted}", *map(str, what)]))
    return run
