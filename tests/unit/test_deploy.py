"""Deployment kits: rendered, linted, their hashes and their command lines compared with what they speak of."""

from __future__ import annotations

import base64
import configparser
import json
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import regopy
from typer.main import get_command

from coco import code_identity
from coco.cli.commands import app
from coco.cli.eif import registers
from coco.cli.node import PLATFORMS
from coco.client.endorsements import source
from coco.configuration.actions import network as actions
from coco.configuration.draft import Draft
from coco.errors import CocoError
from coco.ledger import tables
from made_evidence import REAL, real

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"
sys.path.insert(0, str(DEPLOY))

import render  # noqa: E402 - scripts are no package

LAYERS = ["ab" * 32, "cd" * 32]
NEEDED = {
    "confidential-vm": {"platform": "snp", "endorsements": "https://kdsintf.amd.com"},
    "container": {"platform": "tdx", "image": f"registry.example/coco@sha256:{'0' * 64}"},
    "azure-container": {"image": f"registry.example/coco@sha256:{'0' * 64}", "layers": ",".join(LAYERS)},
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> Path:
    """A bundle in shape; what is in it does not matter here."""
    folder = tmp_path_factory.mktemp("bundle")
    for name in (
        "python/bin/python3",
        "python/lib/python3.11/os.py",
        "packages/coco/enclave/node/boot.py",
        "coco",
        "enclave",
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    code_identity.write_list(folder)
    return folder


def rendered(kit: str, out: Path, bundle: Path, **values: str) -> list[Path]:
    return render.render(
        kit, out, bundle, {"peer": "10.0.0.1:8445", "advertise": "10.0.0.2", **NEEDED.get(kit, {}), **values}
    )


@pytest.mark.parametrize("kit", render.KITS)
def test_every_kit_renders_as_its_readme_says_and_leaves_no_name_open(kit, tmp_path, bundle):
    files = rendered(kit, tmp_path, bundle)
    assert files and all(not re.search(r"\$\{\w+\}", path.read_text()) for path in files)
    readme = (DEPLOY / kit / "README.md").read_text()
    assert "| tested here | not tested here |" in readme and f"render.py {kit} " in readme
    assert f"]({kit})" in (DEPLOY / "README.md").read_text()
    if described := tomllib.loads((DEPLOY / kit / "kit.toml").read_text()).get("bundle"):
        assert code_identity.check(tmp_path / described) == code_identity.check(bundle)


def test_the_kits_say_the_identity_that_the_bundle_has(tmp_path, bundle):
    rendered("nitro", tmp_path, bundle)
    assert f'coco.code="{code_identity.check(bundle)}"' in (tmp_path / "Containerfile").read_text()


# --- command lines -------------------------------------------------------------------------------------------------


def commands(path: Path) -> Iterator[list[str]]:
    """Every ``coco`` command in a file, as words."""
    text = path.read_text()
    if path.suffix in (".json", ".rego"):
        for found in re.finditer(r'/coco/coco", ((?:"[^"]*",\s*)+"--json")', text):
            yield re.findall(r'"([^"]*)"', found.group(1))
    else:
        for found in re.finditer(r"/coco ((?:node|measure) [^;&'\n]*)", text):
            yield found.group(1).split()


def check_words(command: Any, words: list[str]) -> None:
    """Every option is one that the command has, with a value if it takes one; and so are the words beside them."""
    assert command.name in ("join", "measure")
    options = {name: one for one in command.params for name in (*one.opts, *one.secondary_opts)}
    given, beside, rest = set(), 0, iter(words)
    for word in rest:
        if not word.startswith("-"):
            beside += 1
            continue
        option = options[word]
        given.add(option.name)
        if not option.is_flag:
            value = next(rest)
            assert not value.startswith("-") and (word != "--platform" or value in PLATFORMS)
    assert beside == sum(one.param_type_name == "argument" for one in command.params)
    assert {one.name for one in command.params if one.required} <= given


@pytest.mark.parametrize("kit", list(render.KITS))
def test_every_command_line_is_one_that_coco_takes(kit, tmp_path, bundle):
    known = get_command(app)
    found = 0
    for path in rendered(kit, tmp_path, bundle):
        for words in commands(path):
            found += 1
            command: Any = known
            while words and hasattr(command, "commands") and words[0] in command.commands:
                command = command.commands[words.pop(0)]
            check_words(command, words)
    assert found or kit == "container"


def test_an_image_that_is_started_by_a_kit_gets_arguments_that_boot_takes(tmp_path, bundle):
    rendered("gramine", tmp_path, bundle)
    manifest = tomllib.loads((tmp_path / "coco.manifest.template").read_text())
    boot = (ROOT / "src/coco/enclave/node/boot.py").read_text()
    argv = manifest["loader"]["argv"]
    assert argv[1:4] == ["-I", "-S", "-B"] and argv[6].endswith("coco/enclave/node/boot.py")
    for word in argv[7:]:
        name = word.partition("=")[0].removeprefix("--")
        assert f'"{name}"' in boot or f'"--{name}"' in boot, name
    assert "--platform=sgx" in argv and "--listens=tcp:127.0.0.1:7000" in argv


# --- SGX -------------------------------------------------------------------------------------------------------------


def test_the_manifest_lists_every_file_of_the_bundle_with_its_hash_and_no_debugging(tmp_path, bundle):
    rendered("gramine", tmp_path, bundle, enclave_size="2G")
    manifest = tomllib.loads((tmp_path / "coco.manifest.template").read_text())
    sgx, loader = manifest["sgx"], manifest["loader"]
    assert sgx["debug"] is False and sgx["remote_attestation"] == "dcap" and sgx["file_check_policy"] == "strict"
    assert sgx["enclave_size"] == "2G" and sgx["max_threads"] == 32
    assert loader["insecure__use_cmdline_argv"] is False and loader["insecure__use_host_env"] is False
    assert loader["env"] == {"LC_ALL": "C.UTF-8"}
    listed = {one["uri"]: one["sha256"] for one in sgx["trusted_files"] if isinstance(one, dict)}
    there = {path for path in bundle.rglob("*") if path.is_file()}
    assert listed == {
        f"file:bundle/{path.relative_to(bundle)}": sha256(path.read_bytes()).hexdigest() for path in there
    }
    assert not any("allowed_files" in name for name in sgx)


# --- units and scripts -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kit", ["virtual", "gramine", "confidential-vm", "nitro"])
def test_units_are_what_systemd_takes(kit, tmp_path, bundle):
    units = [path for path in rendered(kit, tmp_path, bundle) if path.suffix == ".service"]
    assert units
    for unit in units:
        parsed = configparser.RawConfigParser(strict=False)
        parsed.optionxform = str  # type: ignore[assignment]
        parsed.read_string(unit.read_text())
        assert parsed["Service"]["ExecStart"].startswith("/") and parsed["Install"]["WantedBy"]
        # The enclave makes namespaces of its own: a unit that forbids them would keep it from starting.
        assert not {"RestrictNamespaces", "PrivateUsers", "SystemCallFilter"} & set(parsed["Service"])
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, timeout=60)
    # Programs of a kit are not on this machine; a word that systemd does not know would be named otherwise.
    wrong = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "Unknown" in line]
    assert [line for line in wrong if "is not executable" not in line and "Failed to" not in line] == []


@pytest.mark.parametrize("kit", ["gramine", "confidential-vm", "nitro"])
def test_scripts_are_shell(kit, tmp_path, bundle):
    scripts = [path for path in rendered(kit, tmp_path, bundle) if path.read_text().startswith("#!/bin/sh")]
    assert scripts
    for script in scripts:
        subprocess.run(["sh", "-n", script], check=True, timeout=10)
        assert script.stat().st_mode & 0o111


# --- containers --------------------------------------------------------------------------------------------------------


def test_a_pod_starts_one_container_with_the_bundles_identity(tmp_path, bundle):
    rendered("container", tmp_path, bundle)
    pod = json.loads((tmp_path / "pod.json").read_text())
    assert pod["metadata"]["annotations"]["coco.code"] == code_identity.check(bundle)
    (container,) = pod["spec"]["containers"]
    assert container["args"][:2] == ["node", "join"] and "tdx" in container["args"]
    check_words(get_command(app).commands["node"].commands["join"], container["args"][2:])  # type: ignore[attr-defined]


def test_the_host_data_is_the_policys_and_members_vote_for_it(tmp_path, bundle):
    rendered("azure-container", tmp_path, bundle)
    template = json.loads((tmp_path / "template.json").read_text())
    (group,) = template["resources"]
    policy = base64.b64decode(group["properties"]["confidentialComputeProperties"]["ccePolicy"])
    assert policy == (tmp_path / "policy.rego").read_bytes() and group["properties"]["sku"] == "Confidential"
    host_data = sha256(policy).hexdigest()
    assert group["tags"]["coco.host_data"] == host_data

    class Nothing:
        def get(self, table: str, key: bytes) -> None:
            return None

        def scan(self, table: str, prefix: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
            return iter(())

    draft = Draft(Nothing())
    for action in json.loads((tmp_path / "tee_policy.json").read_text())["actions"]:
        actions._CODE[action["name"]](draft, action["args"])
    assert (tables.NODE_SNP_HOST_DATA, host_data.encode()) in draft.writes
    assert (tables.TEE_POLICY, b"snp") in draft.writes
    uvm = real()["snp (Azure container)"].verify().claims["uvm"]
    row = json.loads(draft.writes[tables.NODE_SNP_UVM_ENDORSEMENTS, uvm["issuer"].encode()] or b"{}")
    assert row == {uvm["feed"]: {"svn": "100"}}


class Rego:
    def __init__(self, module: str) -> None:
        self._module = module

    def __call__(self, rule: str, said: Mapping[str, Any]) -> bool:
        """Whether a rule allows something; what is undefined does not."""
        interpreter = regopy.Interpreter()
        interpreter.add_module("policy", self._module)
        interpreter.set_input(said)
        found = interpreter.query(f"data.policy.{rule}").results
        return bool(found) and list(found[0].expressions) == [True]


def test_the_policy_of_a_container_lets_this_container_run_and_no_other(tmp_path, bundle):
    rendered("azure-container", tmp_path, bundle)
    ask = Rego((tmp_path / "policy.rego").read_text())
    template = json.loads((tmp_path / "template.json").read_text())
    command = template["resources"][0]["properties"]["containers"][0]["properties"]["command"]
    ours = {
        "argList": command,
        "layers": LAYERS,
        "workingDir": "/",
        "envList": ["PATH=/usr/bin", "UVM_SECURITY_CONTEXT_DIR=/security-context-1"],
        "privileged": False,
        "noNewPrivileges": True,
    }
    assert ask("create_container", ours) is True
    for change in (
        {"argList": [*command, "--platform", "virtual"]},
        {"argList": ["/bin/sh"]},
        {"layers": LAYERS[::-1]},
        {"layers": [*LAYERS, "ef" * 32]},
        {"envList": ["LD_PRELOAD=/evil.so"]},
        {"envList": ["XPATH=/evil"]},
        {"workingDir": "/tmp"},
        {"privileged": True},
        {"noNewPrivileges": False},
    ):
        assert ask("create_container", {**ours, **change}) is False, change
    for rule in (
        "exec_in_container",
        "exec_external",
        "dump_stacks",
        "get_properties",
        "runtime_logging",
        "load_fragment",
    ):
        assert ask(rule, {"argList": ["/bin/sh"]}) is False
    assert ask("mount_device", {"deviceHash": LAYERS[0]}) is True
    assert ask("mount_device", {"deviceHash": "ef" * 32}) is False


def test_the_security_context_of_a_container_gives_its_endorsements(tmp_path, monkeypatch):
    sample = real()["snp (Azure container)"]
    chip = (REAL / "azure-aci" / "uvm_host_amd_certificate.json").read_bytes()
    (tmp_path / "host-amd-cert-base64").write_text(base64.b64encode(chip).decode() + "\n")
    (tmp_path / "reference-info-base64").write_text(sample.endorsements["uvm"])
    (tmp_path / "security-policy-base64").write_text(sample.endorsements["policy"])
    monkeypatch.setenv("UVM_SECURITY_CONTEXT_DIR", str(tmp_path))
    ask = source("azure-container")
    verified = sample.verify(endorsements=json.loads(ask("snp", sample.evidence)))
    assert verified.claims["uvm"]["feed"] == "ContainerPlat-AMD-UVM" and verified.claims["policy_sha256"]
    (tmp_path / "host-amd-cert-base64").write_text("no base64")
    with pytest.raises(CocoError) as error:
        ask("snp", sample.evidence)
    assert error.value.code == "host.no_endorsements"


# --- Nitro -------------------------------------------------------------------------------------------------------------


def test_registers_of_an_image_are_those_of_awss_own_library():
    folder = REAL.parent / "nitro-image"
    assert registers(folder / "small.eif") == json.loads((folder / "small.json").read_text())


def test_a_file_that_is_no_image_is_refused(tmp_path):
    image = (REAL.parent / "nitro-image" / "small.eif").read_bytes()
    for wrong in (b"", image[:500], image[:-1], b".eig" + image[4:], image[:700] + b"\1" + image[701:]):
        (tmp_path / "image").write_bytes(wrong)
        with pytest.raises(CocoError) as error:
            registers(tmp_path / "image")
        assert error.value.code == "measure.bad_image"


# --- what cannot be rendered -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kit", "values", "says"),
    [
        ("virtual", {"peer": ""}, "needs peer"),
        ("virtual", {"advertise": ""}, "needs advertise"),
        ("virtual", {"colour": "red"}, "no parameter colour"),
        ("virtual", {"listen": "0.0.0.0 --insecure"}, "listen has a character"),
        ("virtual", {"data": "/x\nUser=root"}, "data has a character"),
        ("azure-container", {"image": 'a","b'}, "image has a character"),
        ("azure-container", {"layers": ""}, "needs layers"),
        ("confidential-vm", {"platform": ""}, "needs platform"),
        ("confidential-vm", {"platform": "$(id)"}, "platform has a character"),
    ],
)
def test_what_a_person_gives_wrongly_is_named(kit, values, says, tmp_path, bundle):
    with pytest.raises(render.Wrong, match=re.escape(says)):
        rendered(kit, tmp_path, bundle, **values)


def test_the_command_renders_and_refuses(tmp_path, bundle):
    command = [sys.executable, str(DEPLOY / "render.py"), "virtual", str(tmp_path / "out"), "advertise=10.0.0.2"]
    done = subprocess.run([*command, "--bundle", str(bundle), "peer=a:1"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.strip().endswith("coco-node.service")
    done = subprocess.run([*command, "--bundle", str(tmp_path), "peer=a:1"], capture_output=True, text=True)
    assert done.returncode == 2 and "is no bundle" in done.stderr
