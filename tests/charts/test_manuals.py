"""What the manuals tell people to type is there: commands of ours with their options, helm's values, kubectl's options,
links, and names of objects."""

import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from typer.core import TyperGroup

from contracts.chart import settable
from contracts.helm import tool
from tests.charts.rendering import CHART, rendered
from tests.conftest import ROOT
from wharfinger.command import app

PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (
        *(ROOT / "README.md", ROOT / "CHANGELOG.md", CHART / "README.md"),
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "deploy").rglob("*.md")),
    )
}
CLUSTER = PAGES["docs/operations.md"].partition("\n## On Kubernetes\n")[2].partition("\n## Cleanup\n")[0]
RUNBOOKS = PAGES["docs/operations.md"].partition("\n## Alerts and their runbooks\n")[2].partition("\n## Memory\n")[0]
NEEDED = ("--set", "database.existingSecret=db", "--set", "queue.existingSecret=mq")
EXAMPLES = [block for block in re.findall(r"```yaml\n(.*?)```", CLUSTER, re.DOTALL) if "kind:" not in block]
SERVER = {entry.name: entry for entry in entry_points(group="wharf.commands")}
WORD = re.compile(r"[a-z][a-z-]*")


def lines(page: str) -> Iterator[str]:
    """Those that are code, without their comments; continued ones are one."""
    text = re.sub(r"\\\n\s*", " ", re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL))
    yield from (re.sub(r"\s#\s.*", "", line).strip() for line in re.findall(r"^ {4,}(.*)$", text, re.MULTILINE))
    said = re.sub(r"^ {4,}.*$", "", text, flags=re.MULTILINE)
    yield from (found.replace("\n", " ") for found in re.findall(r"`([^`]+)`", said))


def typed(program: str) -> list[Any]:
    """(page, commands) for each page: the words of what is typed, up to a pipe or another sign of the shell."""
    found = []
    for page in PAGES:
        commands: list[list[str]] = []
        for line in lines(page):
            for command in re.findall(rf"(?:^|[|;(] ?|\$\(|&& )(?:[A-Z_]+=\S+ +)*({program} (?:(?!\$\()[^|;])*)", line):
                is_quoted = command.count("'") % 2 or command.count('"') % 2
                commands.append(re.split(r"\s+", command) if is_quoted else shlex.split(command))
        if commands:
            found.append(pytest.param(commands, id=page))
    return found


@pytest.mark.parametrize("commands", typed("wharf"))
def test_a_command_of_ours_is_there_with_its_options(commands: list[list[str]]) -> None:
    assert [" ".join(words) for words in commands if not _is_ours(words[1:])] == []


def _is_ours(words: list[str]) -> bool:
    command: Any = typer.main.get_command(app)
    rest, names = list(words), []
    while isinstance(command, TyperGroup) and rest and WORD.fullmatch(rest[0]):
        names.append(rest.pop(0))
        if names[-1] not in command.commands:
            return False
        command = command.commands[names[-1]]
    if server := SERVER.get(".".join(names)):
        # Its options are passed on unread: the command's own parser knows them.
        own = typer.Typer()
        own.command()(server.load())
        command = typer.main.get_command(own)
    options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
    return {word.partition("=")[0] for word in rest if re.fullmatch(r"--[a-z-]+(=.*)?", word)} <= options


@pytest.mark.parametrize("commands", typed("helm"))
def test_the_values_that_are_set_are_the_charts(commands: list[list[str]]) -> None:
    for words in commands:
        given = [word for pair in pairwise(words) if pair[0] in ("--set", "--show-only") for word in pair]
        if given:
            assert rendered({}, *NEEDED, *given)


@pytest.mark.parametrize("example", EXAMPLES, ids=[str(number) for number in range(len(EXAMPLES))])
def test_an_example_of_values_renders(example: str) -> None:
    assert rendered(yaml.safe_load(example), *([] if "existingSecret" in example else NEEDED))


def test_there_are_examples_of_values_for_a_first_installation_for_keda_and_for_monitoring() -> None:
    assert [any(key in example for example in EXAMPLES) for key in ("ingress:", "autoscaling:", "runbookUrl:")] == [
        True
    ] * 3


@cache
def kubectl_options(*command: str) -> set[str]:
    said = subprocess.run([tool("kubectl"), *command, "--help"], capture_output=True, text=True, check=True).stdout
    said += subprocess.run([tool("kubectl"), "options"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"--[a-z-]+", said)) | set(re.findall(r"(?<=^    )-[a-z](?=,)", said, re.MULTILINE))


@pytest.mark.parametrize("commands", typed("kubectl"))
def test_an_option_of_kubectl_is_there(commands: list[list[str]]) -> None:
    for words in commands:
        own = words[1 : words.index("--")] if "--" in words else words[1:]
        own = own[2:] if own[0] in ("-n", "--namespace") else own
        names = [word for word in own if WORD.fullmatch(word)]
        deep = (
            3 if names[:2] == ["create", "secret"] else 2 if names[0] in ("create", "rollout", "config", "auth") else 1
        )
        nested = names[:deep]
        options = {word.partition("=")[0] for word in own if word.startswith("-") and word not in ("-", "--")}
        assert options <= kubectl_options(*nested), " ".join(words)


def test_objects_that_are_named_are_those_of_the_release() -> None:
    values = {
        "image": {"registry": "registry.example.com/ml"},
        "evaluation": {"enabled": True},
        "monitoring": {"serviceMonitor": {"enabled": True}},
    }
    made = {found["metadata"]["name"] for found in rendered(values)}
    made |= {f"data-{name}-0" for name in made if name.endswith(("-postgres", "-rabbitmq"))}
    named = set(re.findall(r"\b(?:data-)?wharf-wharfinger-[a-z0-9-]+\w", CLUSTER + RUNBOOKS))
    assert len(named) > 5
    assert named - {"wharf-wharfinger-migrate-1"} <= made  # and a digest


def test_selectors_find_something() -> None:
    made = [found["metadata"]["labels"] for found in rendered({"evaluation": {"enabled": True}})]
    for selector in re.findall(r"--selector=(\S+?)`?(?:\s|$)", CLUSTER + RUNBOOKS):
        wanted = dict(each.split("=") for each in selector.strip("`,.").split(","))
        assert any(wanted.items() <= labels.items() for labels in made), selector


@pytest.mark.parametrize("page", PAGES)
def test_a_link_leads_somewhere(page: str) -> None:
    text = re.sub(r"```.*?```", "", PAGES[page], flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        path = ((ROOT / page).parent / file).resolve() if file else ROOT / page
        assert path.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(path), f"{page}: {target}"


def test_a_file_that_is_named_is_there() -> None:
    named = re.compile(
        r"`((?:tests|custody|broker|inference_worker|schema|contracts|standalone|wharfinger)/[\w/.-]+\.\w+)`"
    )
    for page, text in PAGES.items():
        assert [name for name in named.findall(text) if not (ROOT / name).exists()] == [], page


def anchors(path: Path) -> set[str]:
    """As GitHub and GitLab make them of headings."""
    titles = re.findall(r"^#{1,6} (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_a_runbook_says_what_it_means_where_to_look_and_what_to_do() -> None:
    sections = re.split(r"^### ", RUNBOOKS, flags=re.MULTILINE)[1:]
    assert len(sections) > 10
    for section in sections:
        assert re.findall(r"\*\*(Means|Look|Do)\.\*\*", section) == ["Means", "Look", "Do"], section.partition("\n")[0]


def test_the_job_that_copies_files_copies_what_is_missing_and_what_is_half_there(tmp_path: Path) -> None:
    [block] = [block for block in re.findall(r"```yaml\n(.*?)```", CLUSTER, re.DOTALL) if "copy-files" in block]
    [container] = yaml.safe_load(block)["spec"]["template"]["spec"]["containers"]
    python, option, script = container["command"]
    assert (python, option) == ("python", "-c")
    old, new = tmp_path / "old", tmp_path / "new"
    blobs = {name: old / "blobs" / "sha256" / "ab" / "c" / name for name in ("whole", "half", "missing")}
    for name, blob in blobs.items():
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_text(f"the bytes of {name}")
        blob.chmod(0o444)
    (old / "models" / "m").mkdir(parents=True)
    (old / "staging").mkdir()
    (old / "volume-id").write_text("id")
    there = new / blobs["half"].relative_to(old)
    there.parent.mkdir(parents=True)
    there.write_text("the by")
    for _ in range(2):
        placed = script.replace("/old", str(old)).replace("/new", str(new))
        subprocess.run(["python3", option, placed], check=True)
        for blob in blobs.values():
            copied = new / blob.relative_to(old)
            assert copied.read_text() == blob.read_text()
        assert sorted(path.name for path in new.iterdir()) == ["blobs", "models", "volume-id"]


def test_what_a_quota_needs_is_what_the_chart_asks_for() -> None:
    [(cpus, gibibytes)] = re.findall(r"the chart asks for ([\d.]+) CPUs and ([\d.]+) GiB", CLUSTER)
    [(more_cpus, more_gibibytes)] = re.findall(r"an upgrade for ([\d.]+) CPUs and ([\d.]+) GiB more", CLUSTER)
    asked = [
        (
            deployment["spec"]["replicas"],
            deployment["spec"]["template"]["spec"]["containers"][0]["resources"]["requests"],
        )
        for deployment in rendered({}, *NEEDED)
        if deployment["kind"] == "Deployment"
    ]
    assert _sum(asked) == (float(cpus), float(gibibytes))
    assert _sum([(1, each) for _, each in asked]) == (float(more_cpus), float(more_gibibytes))


def _sum(asked: list[tuple[int, dict[str, str]]]) -> tuple[float, float]:
    """CPUs and GiB of so many pods that ask for so much each."""
    millicpus = sum(
        replicas * (int(each["cpu"][:-1]) if each["cpu"].endswith("m") else 1000 * int(each["cpu"]))
        for replicas, each in asked
    )
    mebibytes = sum(
        replicas * int(each["memory"][:-2]) * {"Mi": 1, "Gi": 1024}[each["memory"][-2:]] for replicas, each in asked
    )
    return millicpus / 1000, mebibytes / 1024


@pytest.mark.parametrize("page", PAGES)
def test_a_value_that_is_named_is_the_charts(page: str) -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    values["cluster"]["operators"], values["settings"] = {}, dict.fromkeys(settable("cleanup"))
    for named in re.findall(r"`([a-z]\w+(?:\.\w+)+)(?:[=:][^`]*)?`", PAGES[page]):
        found: Any = values
        if (path := named.split("."))[0] not in values:
            continue
        for key in path:
            assert key in found, f"{page}: {named}"
            found = found[key]


def test_every_setting_that_is_named_is_read() -> None:
    others = {"WHARF_SERVER", "WHARF_URL", "WHARF_API_KEY", "WHARF_API_KEY_FILE", "WHARF_TEST_POSTGRES"}
    compose = set(re.findall(r"WHARF_[A-Z_]+", (ROOT / "deploy" / "compose.yaml").read_text()))
    known = set(re.findall(r"^\| `(WHARF_[A-Z_]+)`", PAGES["README.md"], re.MULTILINE)) | others | compose
    for page, text in PAGES.items():
        assert set(re.findall(r"\bWHARF_[A-Z_]*[A-Z]\b", text)) - known == set(), page
