"""docs/kubernetes.md: its script is sound bash (it is never run here), and what it says of manifests is so."""

from __future__ import annotations

import re
import subprocess
import sysconfig
from pathlib import Path

import pytest

from cluster.kubernetes.access import VERBS
from cluster.kubernetes.manifests import manifests
from cluster.spec import RunSpec
from launcher.config.profiles import load_profile

PAGE = (Path(__file__).parents[4] / "docs" / "kubernetes.md").read_text()


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    (text,) = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
    file = tmp_path_factory.mktemp("docs") / "kind.sh"
    file.write_text(text)
    return file


def test_bash_can_read_the_script(script):
    done = subprocess.run(["bash", "-n", script], capture_output=True, text=True, check=False)
    assert (done.stderr, done.returncode) == ("", 0)


def test_shellcheck_has_nothing_to_say(script):
    checker = Path(sysconfig.get_path("scripts")) / "shellcheck"
    done = subprocess.run([checker, script], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("", 0)


def test_the_script_touches_no_cluster_but_its_own(script):
    calls = [line for line in script.read_text().splitlines() if re.search(r"\bkubectl\b", line)]
    assert len(calls) == 1
    assert '--context "${context}"' in calls[0]


def test_the_scripts_profile_can_carry_the_scripts_run(script, tmp_path):
    (profile,) = re.findall(r"<< 'PROFILE'\n(.*?)PROFILE", script.read_text(), flags=re.DOTALL)
    spec = RunSpec(name="digits-cpu", config="", storage="/runs", data_root="/home/launcher/digits", walltime_s=1800)
    file = tmp_path / "kind.yaml"
    file.write_text(profile)
    made = manifests(spec, load_profile(file, "kubernetes"))
    assert made[-1]["metadata"]["name"] == "digits-cpu"
    assert "rayjob/digits-cpu" in script.read_text()


def test_the_page_names_every_object_that_is_rendered_and_every_verb(rendered):
    for manifest in rendered:
        assert f"| {manifest['kind']} |" in PAGE
    for verb in VERBS:
        assert re.search(rf"^\| [a-z, ]*\b{verb}\b", PAGE, flags=re.MULTILINE), verb


def test_the_page_says_that_nothing_of_it_ran_on_a_cluster():
    assert "Linted, never run on a cluster." in PAGE
