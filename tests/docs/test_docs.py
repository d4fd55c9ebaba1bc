"""The documentation builds, links to what is there, and repeats no snippet."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import keras
import keras_hub
import numpy as np
import pytest
from sybil import Sybil
from sybil.parsers.myst import PythonCodeBlockParser

from keras_istar._src.validation import see_guide

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/keras-istar/keras-istar"
RAW = "https://raw.githubusercontent.com/keras-istar/keras-istar"
TEXTS = [
    *ROOT.glob("*.md"),
    *ROOT.glob("docs/*.md"),
    *ROOT.glob("examples/*.md"),
    ROOT / "pyproject.toml",
]


@pytest.mark.processes
@pytest.mark.skipif(
    importlib.util.find_spec("sphinx") is None,
    reason='Sphinx is not installed: pip install "keras-istar[docs]"',
)
def test_documentation_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q"]
    folders = ["-d", tmp_path / "cache", ROOT / "docs", tmp_path / "html"]
    done = subprocess.run(
        [*command, *folders],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "html/api.html").read_text("utf-8")
    assert 'id="keras_istar.attach"' in reference
    measures = (tmp_path / "html/measuring.html").read_text("utf-8")
    assert "Roy and Vetterli 2007" in measures


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_links_into_the_repository_lead_somewhere(text):
    bases = rf"{re.escape(REPOSITORY)}/(?:blob|tree)/main|{re.escape(RAW)}/main"
    for path in re.findall(rf"(?:{bases})/([^)\s\"#]+)", text.read_text()):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: path.name)
def test_files_that_texts_name_are_there(text):
    pattern = r"\b(?:examples|benchmarks|tests|docs)/[\w/]+\.(?:py|md|png)\b"
    if text.name == "CHANGELOG.md":
        pytest.skip("it names files of earlier versions")
    for path in re.findall(pattern, text.read_text("utf-8")):
        assert (ROOT / path).exists(), path


def test_messages_point_to_headings_of_the_guide():
    guide = (ROOT / "docs/guide.md").read_text("utf-8")
    headings = {
        re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
        for heading in re.findall("^#+ (.+)$", guide, re.MULTILINE)
    }
    sources = [
        x.read_text("utf-8") for x in (ROOT / "keras_istar").rglob("*.py")
    ]
    named = re.findall(r"see_guide\([\"']([^)]+)[\"']\)", "".join(sources))
    assert len(named) >= 5
    assert set(named) <= headings
    assert see_guide("padding").endswith("/docs/guide.md#padding")


def test_readme_is_short_and_has_no_relative_link():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert len(readme.splitlines()) <= 130
    # A package index shows the text without the files beside it.
    links = re.findall(r"\]\(([^)]+)\)", readme)
    assert len(links) > 10
    assert all(re.match("https://|#", link) for link in links)


def test_ruff_is_the_same_for_commits_and_tests():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    tests = project["project"]["optional-dependencies"]["test"]
    (pinned,) = [x.partition("==")[2] for x in tests if x.startswith("ruff==")]
    hooks = (ROOT / ".pre-commit-config.yaml").read_text("utf-8")
    assert f"rev: v{pinned} " in hooks


def test_ci_runs_the_test_command_of_the_readme():
    readme = (ROOT / "README.md").read_text("utf-8")
    (command,) = re.findall(r"^pip install -e .*$", readme, re.MULTILINE)
    script = (ROOT / ".ci/run").read_text("utf-8").splitlines()
    for part in command.split(" && "):
        assert any(line.startswith(part) for line in script), part


def test_readme_snippet_for_kerashub_trains(tmp_path, monkeypatch):
    readme = Sybil([PythonCodeBlockParser()]).parse(ROOT / "README.md")
    code = [example.parsed for example in readme.examples()]
    (snippet,) = [str(x) for x in code if "from_preset" in str(x)]
    words = "a film good bad".split()
    tokenizer = keras_hub.tokenizers.BertTokenizer(
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    )
    keras_hub.models.BertTextClassifier(
        keras_hub.models.BertBackbone(
            vocabulary_size=tokenizer.vocabulary_size(),
            num_layers=2,
            num_heads=2,
            hidden_dim=8,
            intermediate_dim=16,
            max_sequence_length=8,
        ),
        num_classes=2,
        preprocessor=keras_hub.models.BertTextClassifierPreprocessor(
            tokenizer, sequence_length=8
        ),
    ).save_to_preset(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    assert "bert_base_en_uncased" in snippet
    snippet = snippet.replace("bert_base_en_uncased", str(tmp_path / "tiny"))
    names = {"texts": ["a film good", "bad film"] * 4, "labels": [1, 0] * 4}
    names["labels"] = np.array(names["labels"])
    exec(compile(snippet, "README.md", "exec"), names)
    history = names["classifier"].history.history
    assert {"isoscore_union", "isoscore_layer_0"} <= set(history)
    saved = keras_hub.models.BertTextClassifier.from_preset("fine_tuned")
    assert isinstance(saved, keras.Model)
