# SPDX-License-Identifier: GPL-3.0-or-later
"""A run over all selected rotations, one after the other."""

from dataclasses import dataclass, field

from gatekeeper.rotation.configured_keys import KeyConfiguration, KeySelection
from gatekeeper.rotation.due import Plans, World, is_selected
from gatekeeper.rotation.state import RotationRefused, RotationStage, load, locked
from gatekeeper.rotation.step import Rotation, StepResult


@dataclass(slots=True)
class Run:
    """The outcomes of all rotations in one run; `refused` says which could not begin, and why."""

    outcomes: list[StepResult] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


async def rotate(world: World, selection: KeySelection) -> Run:
    """Continue every selected rotation, and begin those that are due. Raises RotationRefused, OSError."""
    tables, run = KeyConfiguration(world.config), Run()
    with locked(() if world.dry_run else tables.folders):
        started = [(folder, state) for folder in tables.folders for state in load(folder)]
        for folder, state in started:
            if state.stage is not RotationStage.RETIRED and tables.folder_of(state.old) != folder:
                raise RotationRefused(f"{folder / state.file_name} is about a key that is not in this folder")
        plans = Plans(world, tables, started)
        under_way = [
            (folder, state)
            for folder, state in started
            if state.stage is not RotationStage.RETIRED and is_selected(selection, state.domains, state.old, state.new)
        ]
        for key in tables.keys:
            past = plans.rotation_of(key)
            if not is_selected(selection, key.domains, key.reference) or (
                past is not None and past.stage is not RotationStage.RETIRED
            ):
                continue
            if plans.is_due(selection, key, past):
                try:
                    under_way.append(plans.begin(key))
                except RotationRefused as refused:
                    run.refused.append(str(refused))
            elif past is not None and selection.is_named:
                run.outcomes.append(StepResult(past))
        for folder, state in under_way:
            run.outcomes.append(await Rotation(world, tables, folder, state).advance())
    if selection.is_named and selection.older is None and not (run.outcomes or run.refused):
        what = [problem for problem in tables.problems if not problem.warning]
        raise RotationRefused("\n".join([f"the tables of [signing] have no key {selection}", *map(str, what)]))
    return run
