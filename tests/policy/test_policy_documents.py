"""What people read says what the model does: default policy, examples, schema, docs/policy.md."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from accelerator.policy import Policy, check_policy, check_texts, compile_policy
from accelerator.policy.relay_model import Connection
from accelerator.policy.schema import policy_schema, schema_text
from accelerator.policy.shape import every_key, keys_of

ROOT = Path(__file__).resolve().parents[2]
DEFAULT = ROOT / "config" / "accelerator.yaml"
EXAMPLES = sorted((ROOT / "config" / "examples").glob("*.yaml"))
DOCUMENT = (ROOT / "docs" / "policy.md").read_text()
KEYS = dict(every_key())

# Example values of accelerator.yaml: these keys have no default, or none that could be shown.
HAS_NO_DEFAULT = {
    "version",
    "site",
    "zones",
    "links",
    "marks",
    "classes",
    "listen",
    "admin",
    "origins",
    "name",
    "nets",
    "address",
    "from",
    "hosts",
    "class",
    "ca",
    "client_certificate",
    "via",
    "via_credential",
    "upstream",
    "downstream",
    "relays",
    "interface",
    "group",
    "unicast",
    "http",
    "pathways",
    "interfaces",
    "destinations",
    "to",
    "source",
}


def check_by_schema(text: str) -> bool:
    """Whether the schema accepts `text` as an editor reads it."""
    jsonschema = pytest.importorskip("jsonschema", reason="an editor's view of the schema needs jsonschema")
    jsonschema.Draft202012Validator.check_schema(policy_schema())
    return bool(jsonschema.Draft202012Validator(policy_schema()).is_valid(yaml.safe_load(text)))


def differences(given: BaseModel, path: str = "") -> dict[str, object]:
    """Keys of a section that differ from their defaults, through all sections below."""
    found: dict[str, object] = {}
    for name, key in keys_of(type(given)).items():
        value = getattr(given, key.field)
        if key.is_named:
            for entry, section in value.items():
                found |= differences(section, f"{path}{name}.{entry}.")
        elif key.is_listed:
            for section in value:
                found |= differences(section, f"{path}{name}.")
        elif isinstance(value, BaseModel):
            found |= differences(value, f"{path}{name}.")
        elif key.info.is_required() or value != key.info.get_default(call_default_factory=True):
            found[path + name] = value
    return found


def test_the_default_policy_is_the_defaults() -> None:
    policy, problems = check_policy(DEFAULT)
    assert problems == ()
    assert policy is not None
    assert {path for path in differences(policy) if path.rpartition(".")[2] not in HAS_NO_DEFAULT} == set()
    minimal, _ = check_texts([("p", b"{version: 1, site: {name: lyon}}")])
    assert minimal is not None
    assert policy.steering == minimal.steering
    assert policy.multicast.querier == minimal.multicast.querier
    assert (policy.cache, policy.limits, policy.workers, policy.locked, policy.privacy, policy.logs) == (
        minimal.cache,
        minimal.limits,
        minimal.workers,
        minimal.locked,
        minimal.privacy,
        minimal.logs,
    )


def test_the_default_policy_has_every_key() -> None:
    written = set(re.findall(r"^ *(?:# *)*(?:- )?([a-z0-9_]+):", DEFAULT.read_text(), re.MULTILINE))
    assert {path.rpartition(".")[2] for path in KEYS} - written == set()
    tree = yaml.safe_load(DEFAULT.read_text())
    tree["origins"]["media"]["credential"] = yaml.safe_load(commented_out("credential", deep=True))["credential"]
    for name in ("ca", "client_certificate", "via", "via_credential", "body_max"):
        tree["origins"]["media"][name] = "commented out, as it names what has no default"
    tree["origins"]["media"]["max_offline"] = tree["classes"]["webcast"]["max_offline"] = "commented out: no limit"
    tree["origins"]["media"]["timeouts"]["head"] = "commented out, as the profile decides"
    tree["links"]["main"] |= dict.fromkeys(("down", "up", "video", "gateway", "probe"), "they stand for a site's facts")
    tree["links"]["main"]["shape"]["lan"] = tree["marks"]["meetings"]["marked"] = "commented out: there is none"
    tree["cache"]["disk"] = {"path": "", "size": "", "encrypt": ""}  # commented out too: without it there is no disk
    tree["steering"] |= {
        "proxy": {"address": "", "zones": ""},
        "intercept": dict.fromkeys(("interfaces", "destinations", "ports", "port"), "commented out: there is none"),
        "document": dict.fromkeys(("pathways", "ttl", "clone_of", "host", "reload"), "commented out: there is none"),
    }
    for name in ("reorder", "payload_type", "bitrate", "announce"):
        tree["relays"]["hall"][name] = "commented out: no value stands for their lack"
    tree["relays"]["hall"]["connection"] = dict.fromkeys(Connection.model_fields, "commented out: is of srt and rist")
    tree["relays"]["hall"]["retransmit"] = {"from": "", "payload_type": "", "port": ""}
    tree["relays"]["hall"]["to"][1] |= {"rate": "", "hold": "commented out: it depends on what it is of"}
    tree["udpxy"] |= {"interface": "", "bitrate": ""}  # the same
    for path in KEYS:
        node: Any = tree
        for step in path.split("."):
            if isinstance(node, list):  # each item has the keys of its kind
                node = {name: value for item in node for name, value in item.items()}
            node = next(iter(node.values())) if step == "NAME" else node[step]


def commented_out(key: str, *, deep: bool = False) -> str:
    """The section of the default policy that is commented out, as it would be written; `deep`: also what is within."""
    text = DEFAULT.read_text().split(f"    # {key}:")[1].split("\n    override_private")[0]
    lines = [line[6:] for line in f"    # {key}:{text}".splitlines()]
    return "\n".join(re.sub(r"^( *)# ", r"\1", line) if deep else line for line in lines)


def test_the_credential_that_is_commented_out_is_valid_with_its_defaults() -> None:
    text = "version: 1\nsite: {name: a}\norigins: {m: {from: ['https://x'], hosts: [h], SECTION}}\n"
    section = json.dumps(yaml.safe_load(commented_out("credential"))["credential"])
    policy, problems = check_texts([("p", text.replace("SECTION", f"credential: {section}").encode())])
    assert [str(problem) for problem in problems if not problem.is_warning] == []
    assert policy is not None
    credential = policy.origins["m"].credential
    assert credential is not None
    given = {path.rpartition(".")[2] for path in differences(credential)}
    examples = {"parameters", "covers", "scheme", "algorithm", "keys", "issuer", "audience", "path_claim"}
    assert given == examples, "the rest are defaults"


def test_the_documents_examples_of_credentials_are_valid() -> None:
    section = DOCUMENT.split("#### Viewers' credentials")[1].split("####")[0]
    text = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)[0]
    policy, problems = check_texts([("p", b"version: 1\nsite: {name: a}\n" + text.encode())])
    assert [str(problem) for problem in problems if not problem.is_warning] == []
    assert policy is not None


def test_the_minimal_policy_of_the_document_is_valid() -> None:
    assert "`{version: 1, site: {name: lyon}}`" in DOCUMENT
    assert check_texts([("p", b"{version: 1, site: {name: lyon}}")])[0] is not None


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_have_no_problem_and_say_what_site_they_are(path: Path) -> None:
    policy, problems = check_policy(path)
    assert problems == ()
    assert policy is not None
    assert compile_policy(policy).hosts
    assert path.read_text().startswith("# Kind of site: ")


def test_the_schema_is_current() -> None:
    committed = (ROOT / "config" / "accelerator.schema.json").read_text()
    assert committed == schema_text(), "python -m accelerator.policy.schema > config/accelerator.schema.json"


def test_the_schema_has_every_key_described() -> None:
    schema = policy_schema()
    for path, key in KEYS.items():
        section = schema
        *above, name = path.split(".")
        for step in above:
            section = section["patternProperties"] if step == "NAME" else section["properties"][step]
            section = section.get("items", section)
            section = next(iter(section.values())) if step == "NAME" else section
            reference = section.get("$ref") or next(
                (part["$ref"] for part in section.get("anyOf", ()) if "$ref" in part), None
            )
            section = schema["$defs"][reference.rpartition("/")[2]] if reference else section
        assert section["properties"][name]["description"] == key.info.description
        assert section["additionalProperties"] is False


@pytest.mark.parametrize("path", [DEFAULT, *EXAMPLES], ids=lambda path: path.stem)
def test_the_schema_accepts_what_the_check_accepts(path: Path) -> None:
    assert check_by_schema(path.read_text())


@pytest.mark.parametrize(
    "text",
    [
        "{site: {name: a}}",
        "{version: 2, site: {name: a}}",
        "{version: 1, site: {name: a}, zonez: {}}",
        "{version: 1, site: {name: a}, cache: {memory: 512}}",
        "{version: 1, site: {name: a}, cache: {memory: 512mb}}",
        "{version: 1, site: {name: a}, zones: {1a: {}}}",
        "{version: 1, site: {name: a}, workers: 0}",
        "{version: 1, site: {name: a}, origins: {m: {from: [], hosts: [a]}}}",
        "{version: 1, site: {name: a}, origins: {m: {from: ['ftp://x'], hosts: [a]}}}",
    ],
)
def test_the_schema_refuses_with_the_check(text: str) -> None:
    assert check_texts([("p", text.encode())])[0] is None
    assert not check_by_schema(text)


def test_the_schema_takes_empty_sections() -> None:
    assert check_by_schema("{version: 1, site: {name: a}, zones: , origins: , cache: , locked: }")


def document_rows() -> dict[str, list[str]]:
    rows = re.findall(r"^\| `([a-zA-Z0-9_.]+)` \| (.*?) \| (.*?) ?\| (.*?) \| (.*) \|$", DOCUMENT, re.MULTILINE)
    return {path: list(cells) for path, *cells in rows}


def test_the_document_has_every_key_and_no_other() -> None:
    rows = document_rows()
    assert set(rows) == set(KEYS)
    for path, (kind, _, example, why) in rows.items():
        assert kind, path
        assert example, path
        assert why.endswith((".", ")")), path


def test_the_document_tells_the_defaults() -> None:
    defaults: dict[str, object] = {}
    for path, key in KEYS.items():
        name = path.rpartition(".")[2]
        if key.section is None and not key.info.is_required():
            owner = next(section for section in _sections(Policy) if key in keys_of(section).values())
            defaults[path] = owner.model_construct().model_dump(mode="json", by_alias=True)[name]
    for path, (_, default, _, _) in document_rows().items():
        if path in defaults and defaults[path] is not None:
            written = json.dumps(defaults[path]) if not isinstance(defaults[path], str) else defaults[path]
            assert default.startswith(f"`{written}`"), path
        elif KEYS[path].info.is_required():
            assert default == "required", path


def _sections(model: type[BaseModel]) -> list[type[BaseModel]]:
    below = [key.section for key in keys_of(model).values() if key.section is not None]
    return [model, *(deeper for section in below for deeper in _sections(section))]


def test_the_documents_example_of_a_lock_is_what_happens() -> None:
    section = DOCUMENT.split("## Merging and locks")[1]
    files = re.findall(r"```yaml\n# (\S+)\n(.*?)```", section, re.DOTALL)
    message = next(line for line in section.splitlines() if line.startswith(files[1][0] + ":"))
    _, problems = check_texts([(name, text.encode()) for name, text in files])
    assert [str(problem) for problem in problems if not problem.is_warning] == [message]


def test_checking_needs_no_compiled_code_of_ours_and_no_numpy() -> None:
    script = (
        "import sys, accelerator.policy, accelerator.policy.schema\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('ext', 'numpy', 'uvloop')])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
