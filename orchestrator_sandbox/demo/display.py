"""How the demo is shown: one live picture on a terminal, plain lines anywhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from orchestrator.resources.jenkins.answers import Build
from orchestrator_sandbox.dagster_runs import RunSummary
from orchestrator_sandbox.demo.outcome import DemoOutcome

STYLES = {
    "SUCCESS": "green",
    "FINISHED": "green",
    "terminated": "green",
    "FAILURE": "red",
    "FAILED": "red",
    "CANCELED": "yellow",
    "ABORTED": "yellow",
    "IN_PROGRESS": "cyan",
    "STARTED": "cyan",
}
VISIBLE_BUILDS = 5
BORDERS = 5
LINK_WIDTH = 15
SYSTEM_METRICS = "system/"
"""MLflow measures the machine, too."""


@dataclass(frozen=True)
class DemoState:
    """What the demo shows at one moment.

    Attributes:
        activity: what the demo waits for, in one line.
        builds: Jenkins' builds, newest first.
        trainings: partition → status of its newest Dagster run.
        run: the run that is followed.
        output: the last lines that its training has printed.
        outcome: what became of the last build that was trained.
        hints: what the user may do now, one paragraph each.
    """

    activity: str
    builds: Sequence[Build] = ()
    trainings: Mapping[str, str] = field(default_factory=dict)
    run: RunSummary | None = None
    output: Sequence[str] = ()
    outcome: DemoOutcome | None = None
    hints: Sequence[str] = ()


class View(AbstractContextManager["View"], Protocol):
    """Shows states of the demo."""

    def show(self, state: DemoState) -> None:
        """Replace the previous state."""


def view_on(console: Console) -> View:
    """A view for this console: live on a terminal, else line by line."""
    return LiveView(console) if console.is_terminal else LineView(console)


class LiveView:
    """Draws each state over the previous one; what stays true is written above it, once."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, refresh_per_second=4)
        self._written: list[object] = []

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def show(self, state: DemoState) -> None:
        """Draw it."""
        if state.outcome is not None:
            self._write_once(state.outcome, _outcome(state.outcome))
            for name, url in _links(state.outcome):
                self._write_once(url, Text(f"{name:<{LINK_WIDTH}}{url}"))
        for hint in state.hints:
            self._write_once(hint, Text(hint))
        self._live.update(picture(state, height=self._console.height))

    def _write_once(self, key: object, drawn: RenderableType) -> None:
        if key not in self._written:
            self._written.append(key)
            # The terminal folds long lines itself, so that a command or an address can be copied whole.
            self._console.print(drawn, soft_wrap=isinstance(drawn, Text))


class LineView:
    """Writes a line for everything that a state adds to the previous ones."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._before: set[str] = set()
        self._output: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._console.file.flush()

    def show(self, state: DemoState) -> None:
        """Write what is new in it."""
        self._write(state.activity)
        for build in reversed(state.builds):
            of_commit = f" of {_short(build.commit)}" if build.commit else ""
            self._write(f"Jenkins: build {build.number}{of_commit} is {_result(build)}")
        if state.run is not None:
            for step in state.run.steps:
                took = f" in {step.seconds:.1f} s" if step.seconds is not None else ""
                self._write(f"Dagster: run {state.run.id[:8]}, step {step.name}: {step.status}{took}")
            for line in _new_lines(self._output, state.output):
                self._console.print(f"  | {line}", markup=False, highlight=False, soft_wrap=True)
            self._output = list(state.output)
        if state.outcome is not None:
            for name, value in [*_facts(state.outcome), *_links(state.outcome)]:
                self._write(f"{name}: {value}")
        for hint in state.hints:
            self._write(hint)

    def _write(self, line: str) -> None:
        if line not in self._before:
            self._before.add(line)
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def picture(state: DemoState, *, height: int) -> RenderableType:
    """What changes of a state, in not more than `height` lines."""
    parts: list[RenderableType] = [Text(f"● {state.activity}", style="bold")]
    if state.builds:
        parts.append(_builds(state))
    if state.run is not None and not state.run.over:
        used = 1 + VISIBLE_BUILDS + len(state.run.steps) + BORDERS
        parts.append(_run(state.run, state.output[-max(1, height - used) :]))
    return Group(*parts)


def _facts(outcome: DemoOutcome) -> list[tuple[str, str]]:
    """What a user wants to know of a trained model: name → value."""
    cost = f", {outcome.usd:.4f} USD" if outcome.usd is not None else ""
    minutes = f", {outcome.minutes:.1f} minutes{cost}" if outcome.minutes is not None else ""
    own = {name: value for name, value in sorted(outcome.metrics.items()) if not name.startswith(SYSTEM_METRICS)}
    metrics = "  ".join(f"{name} {value:.4f}" for name, value in own.items())
    champion = "version {version} of the registered model {model}, of build {build}"
    return [
        ("build", f"{outcome.partition} of commit {outcome.commit}"),
        ("Dagster run", f"{outcome.dagster_run_id} {outcome.dagster_status}"),
        ("MLflow run", f"{outcome.mlflow_run_id} {outcome.mlflow_status}"),
        ("metrics", metrics or "none"),
        *([("package", f"digits {outcome.package}, installed from the private index")] if outcome.package else []),
        ("instance", f"{outcome.instance_id} {outcome.instance_state}{minutes}"),
        *([("best model", champion.format_map(outcome.champion))] if outcome.champion else []),
        *([("in use", "version {version} in {target}".format_map(outcome.deployment))] if outcome.deployment else []),
    ]


def _links(outcome: DemoOutcome) -> list[tuple[str, str]]:
    return [(name.replace("_", " "), url) for name, url in outcome.urls.items()]


def _builds(state: DemoState) -> Panel:
    table = Table.grid(padding=(0, 2))
    for build in state.builds[:VISIBLE_BUILDS]:
        training = state.trainings.get(str(build.number))
        table.add_row(
            f"#{build.number}",
            _short(build.commit),
            _styled(_result(build)),
            _styled(f"training {training}", training) if training else Text("not trained", style="dim"),
        )
    return Panel(table, title="builds", title_align="left", border_style="dim")


def _run(run: RunSummary, output: Sequence[str]) -> Panel:
    steps = Table.grid(padding=(0, 2))
    for step in run.steps:
        seconds = f"{step.seconds:.1f} s" if step.seconds is not None else ""
        steps.add_row(step.name, _styled(step.status), Text(seconds, style="dim"))
    printed = Text("\n".join(output), style="dim", overflow="ellipsis", no_wrap=True)
    return Panel(
        Group(steps, printed),
        title=Text.assemble(f"run {run.id[:8]} of build {run.partition}: ", _styled(run.status)),
        title_align="left",
        border_style="dim",
    )


def _outcome(outcome: DemoOutcome) -> Panel:
    table = Table.grid(padding=(0, 2))
    for name, value in _facts(outcome):
        table.add_row(Text(name, style="dim"), Text(value, overflow="fold"))
    title = "no model" if outcome.faults() else "a trained model"
    return Panel(table, title=title, title_align="left", border_style="red" if outcome.faults() else "green")


def _styled(text: str, status: str | None = None) -> Text:
    return Text(text, style=STYLES.get(status or text, ""))


def _result(build: Build) -> str:
    return build.result or "building"


def _short(commit: str | None) -> str:
    return commit[:8] if commit else "........"


def _new_lines(before: Sequence[str], now: Sequence[str]) -> Sequence[str]:
    """What `now` has at its end that `before` had not; both are the tail of the same lines."""
    for overlap in range(min(len(before), len(now)), 0, -1):
        if list(before[-overlap:]) == list(now[:overlap]):
            return now[overlap:]
    return now
