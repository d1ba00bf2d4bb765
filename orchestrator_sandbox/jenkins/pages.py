"""The few pages that the sandbox's Jenkins has for people: the jobs, a job, and a build with its console."""

from __future__ import annotations

from datetime import UTC, datetime

from flask import render_template_string

from orchestrator_sandbox.jenkins.beans import job_path
from orchestrator_sandbox.jenkins.home import BuildRecord, JobStore

CONSOLE_BYTES = 200_000
LAYOUT = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{{ title }} · Jenkins</title>
<meta name="viewport" content="width=device-width">{% if running %}<meta http-equiv="refresh" content="2">{% endif %}
<style>
 body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
 a{color:#0b5fa5;text-decoration:none} a:hover{text-decoration:underline}
 table{border-collapse:collapse;width:100%} td,th{text-align:left;padding:.35rem .8rem .35rem 0;
 border-bottom:1px solid #e3e6ea} pre{background:#12161b;color:#dfe5ec;padding:1rem;overflow:auto;border-radius:6px}
 code{font-size:.92em} .r{font-weight:600}.SUCCESS{color:#1a7f37}.FAILURE{color:#cf222e}.UNSTABLE{color:#9a6700}
 .running{color:#0b5fa5} nav{color:#667} h1{margin:.3rem 0 1rem}
</style></head><body><nav><a href="/">Jenkins</a> (sandbox){% for name, path in trail %}
 &rsaquo; <a href="/{{ path }}">{{ name }}</a>{% endfor %}</nav><h1>{{ title }}</h1>"""
RESULT = """{% macro result(build) %}<span class="r {{ build.result or 'running' }}">{{ build.result or 'running' }}
</span>{% endmacro %}"""
JOBS = (
    RESULT
    + LAYOUT
    + """<table><tr><th>Job<th>Last build<th>Result</tr>{% for job, path, build in jobs %}
<tr><td><a href="/{{ path }}">{{ job.full_name }}</a>
<td>{% if build %}<a href="/{{ path }}{{ build.number }}/">#{{ build.number }}</a>{% else %}&ndash;{% endif %}
<td>{% if build %}{{ result(build) }}{% endif %}</tr>{% else %}<tr><td colspan="3">Nothing here yet.</tr>{% endfor %}
</table>"""
)
JOB = (
    RESULT
    + LAYOUT
    + """<table><tr><th>Build<th>Result<th>Commit<th>Started<th>Seconds</tr>
{% for build in builds %}<tr><td><a href="/{{ path }}{{ build.number }}/">#{{ build.number }}</a><td>{{ result(build) }}
<td><code>{{ (build.commit or '')[:12] }}</code><td>{{ when(build) }}<td>{{ build.duration / 1000 }}</tr>
{% else %}<tr><td colspan="5">Not built yet.</tr>{% endfor %}</table>"""
)
BUILD = (
    RESULT
    + LAYOUT
    + """<table><tr><th>Result<td>{{ result(build) }}</tr>
<tr><th>Commit<td><code>{{ build.commit or 'none' }}</code></tr><tr><th>Branch<td>{{ build.branch or 'none' }}</tr>
<tr><th>Repository<td><code>{{ build.repository or 'none' }}</code></tr><tr><th>Cause<td>{{ build.cause }}</tr>
<tr><th>Started<td>{{ when(build) }}</tr><tr><th>Seconds<td>{{ build.duration / 1000 }}</tr>
{% for name, value in build.parameters.items() %}<tr><th>{{ name }}<td>{{ value }}</tr>{% endfor %}</table>
<h2>Console output</h2><pre>{{ console }}</pre>"""
)


def jobs_page(title: str, trail: list[tuple[str, str]], jobs: list[JobStore]) -> str:
    """The jobs of a folder, or of the whole server."""
    rows = [(job, job_path(job.full_name), next(iter(job.newest_first()), None)) for job in jobs]
    return render_template_string(JOBS, title=title, trail=trail, jobs=rows)


def job_page(job: JobStore) -> str:
    """A job and its newest builds."""
    builds = job.newest_first()[:50]
    return render_template_string(
        JOB,
        title=job.full_name,
        trail=trail_to(job)[:-1],
        path=job_path(job.full_name),
        builds=builds,
        when=_when,
        running=any(build.result is None for build in builds),
    )


def build_page(job: JobStore, build: BuildRecord) -> str:
    """A build; it reloads itself while it runs."""
    return render_template_string(
        BUILD,
        title=f"{job.full_name} #{build.number}",
        trail=trail_to(job),
        build=build,
        console=console_of(job, build)[-CONSOLE_BYTES:],
        when=_when,
        running=build.result is None,
    )


def console_of(job: JobStore, build: BuildRecord) -> str:
    """All that a build has printed so far."""
    log = job.log(build.number)
    return log.read_text(errors="replace") if log.exists() else ""


def trail_to(job: JobStore) -> list[tuple[str, str]]:
    """The name and path of a job, and of each folder above it."""
    parts = job.full_name.split("/")
    return [(part, job_path("/".join(parts[: place + 1]))) for place, part in enumerate(parts)]


def _when(build: BuildRecord) -> str:
    return datetime.fromtimestamp(build.timestamp / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
