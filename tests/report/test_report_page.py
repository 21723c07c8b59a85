"""The report page: whole, well formed, self-contained, escaped, and neutral about who wins."""

from __future__ import annotations

import base64
import dataclasses
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from run_builder import CLASSES, MakeRun, edit

from fedbicross_flwr.errors import FedBiCrossError
from fedbicross_flwr.files import write_bytes
from fedbicross_flwr.report import load_run, results_table, write_report
from fedbicross_flwr.report.figures import FIGURES, Rendered
from fedbicross_flwr.report.page import render_page
from fedbicross_flwr.report.units import percent
from fedbicross_flwr.report.view import (
    client_lines,
    clustering_text,
    exchange,
    facts,
    headlines,
    synthetic_text,
)

VOID = {"meta", "img", "source", "br", "hr", "link", "input"}


@pytest.mark.parametrize(
    ("said", "total", "title"),
    [
        ({}, 500.0, "Total time"),
        ({}, 10.0, "Time of the last call"),  # what other runs had computed was taken over
        ({"resumed": True}, 500.0, "Time of the last call"),
    ],
)
def test_the_time_of_a_run_that_was_interrupted_is_not_called_the_total(
    run_folder: Path, said: dict[str, bool], total: float, title: str
) -> None:
    seconds = {"synthesis": 200.0, "upload round": 100.0, "total": total}
    edit(run_folder / "run.json", lambda content: content.update(seconds=seconds, **said))
    assert [label for label, _ in facts(load_run(run_folder)) if "ime" in label] == [title]


class Page(HTMLParser):
    """Collects what a page holds, and fails on a tag that is not closed where it was opened."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def report(folder: Path) -> Page:
    """Write and read a whole report."""
    return Page(write_report(folder).read_text(encoding="utf-8"))


def words_only(folder: Path) -> Page:
    """Return the page without its figures, which take most of the time."""
    none = Rendered({}, dict.fromkeys(FIGURES, "not drawn"))
    return Page(render_page(load_run(folder), none, none))


@pytest.fixture(scope="module")
def page(reported_run: Path) -> Page:
    return Page((reported_run / "report.html").read_text(encoding="utf-8"))


def test_the_page_is_whole(reported_run: Path, page: Page) -> None:
    text = page.text()
    table = results_table(load_run(reported_run))
    for row in table.rows:
        assert row.name in text
        for value in row.values.values():
            assert value.mean is not None
            assert value.worst is not None
            assert f"{100 * value.mean:.1f}" in text
            assert f"{100 * value.worst:.1f}" in text
    for expected in (
        "bloodmnist",
        "Dirichlet α 0.3",
        "Clusters K 3",
        "10 min 40 s",
        "partition.alpha",
        "2.13.0",
    ):
        assert expected in text
    assert len(page.all("img")) == 6
    assert "Left out" not in text
    assert (reported_run / "figures" / "accuracy.png").is_file()


def test_the_page_loads_nothing(reported_run: Path, page: Page) -> None:
    names = {name for name, _ in page.tags}
    assert not names & {"script", "link", "iframe", "object", "embed", "base", "form"}
    for tag, attributes in page.tags:
        for key in ("src", "srcset", "href", "poster", "action", "background"):
            value = attributes.get(key)
            assert value is None or value.startswith("data:image/png;base64,"), f"{tag} {key}"
        assert not [key for key in attributes if key.startswith("on")]
    styles = re.findall(r"<style>(.*?)</style>", (reported_run / "report.html").read_text(), re.DOTALL)
    assert len(styles) == 1
    assert "url(" not in styles[0]
    assert "@import" not in styles[0]
    assert "&" not in styles[0], "the style sheet must not be escaped"
    policy = [meta for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0]["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_light_and_dark_pictures_pair_up(page: Page) -> None:
    pairs = list(zip(page.all("img"), page.all("source"), strict=True))
    assert len(pairs) == 6
    for light, dark in pairs:
        assert light["alt"]
        assert dark["media"] == "screen and (prefers-color-scheme: dark)"
        corners = []
        for data in (light["src"], dark["srcset"]):
            assert data is not None
            with Image.open(io.BytesIO(base64.b64decode(data.partition(",")[2]))) as image:
                corners.append(sum(image.convert("RGB").getpixel((2, 2))))  # type: ignore[arg-type]
        assert corners[0] == 3 * 255
        assert corners[1] < 120


def test_a_malicious_name_is_text(make_run: MakeRun) -> None:
    attack = "<script>alert(1)</script>"
    folder = make_run(classes=(attack, *CLASSES[1:]), failed=(1,))

    def poison(content: Any) -> None:
        content["clients"][1]["reason"] = '"><img src=x onerror=alert(1)>'
        content["dataset"]["source"] = "javascript:alert(1)"
        content["dataset"]["name"] = "</title><b>"

    edit(folder / "run.json", poison)
    edit(folder / "metrics.json", lambda content: content["rows"][0].update(note=attack))
    page = words_only(folder)
    assert not page.all("script")
    assert all(image["src"] != "x" for image in page.all("img"))
    assert attack in page.text()
    assert '"><img src=x onerror=alert(1)>' in page.text()


def test_a_deployment(make_run: MakeRun) -> None:
    page = report(make_run(deployment=True, channels=1, clients=3))
    text = page.text()
    assert "Left out: The sites did not disclose their class counts." in text
    assert "Global test" not in text
    assert "Dirichlet" not in text
    assert "Local test" in text
    assert len(page.all("img")) == 5


def test_the_worth_of_synthetic_images_stands_below_them(page: Page, run_folder: Path) -> None:
    said = (
        "All hospitals’ models together recognise 7 of 8 classes in 24 images; 75.0 % are recognised as what "
        "they were made for. What was learned from an image answers it as they do in 50.0 % of cases."
    )
    assert f"They need not look like real images. {said}" in page.text()
    assert synthetic_text(load_run(run_folder)) == said
    edit(run_folder / "synthetic.json", lambda content: content.update(agreement=None))
    assert "in 24 images. What was learned" in synthetic_text(load_run(run_folder))
    (run_folder / "synthetic.json").unlink()
    assert synthetic_text(load_run(run_folder)) == ""


def test_a_bare_run_says_what_is_left_out(run_folder: Path) -> None:
    edit(run_folder / "run.json", lambda content: content.update(finished=False))
    for name in (
        "clustering.json",
        "inversion.json",
        "weights.json",
        "metrics.json",
        "synthetic.safetensors",
    ):
        (run_folder / name).unlink()
    page = report(run_folder)
    text = page.text()
    assert "This run has not finished" in text
    for name in (
        "clustering.json",
        "inversion.json",
        "weights.json",
        "metrics.json",
        "synthetic.safetensors",
    ):
        assert f"holds no {name}" in text
    assert len(page.all("img")) == 1


def test_failed_clients_are_named_with_their_reason(make_run: MakeRun) -> None:
    text = words_only(make_run(failed=(1, 3))).text()
    assert "Client 1 failed: no reply within 600 s." in text
    assert "Client 3 failed: no reply within 600 s." in text
    assert "The run went on with 3 clients" in text
    assert "5 (2 failed)" in text


def level(folder: Path, name: str, accuracy: float) -> None:
    def change(content: Any) -> None:
        row = next(row for row in content["rows"] if row["name"] == name)
        for entry in row["clients"]:
            entry["global"]["accuracy"] = accuracy

    edit(folder / "metrics.json", change)


def test_the_headline_says_when_fedbicross_loses(run_folder: Path) -> None:
    level(run_folder, "FedBiCross", 0.60)
    level(run_folder, "local-only", 0.62)
    level(run_folder, "local-only, same budget", 0.60)
    level(run_folder, "FedAvg-1", 0.59)
    card = headlines(results_table(load_run(run_folder)))[0]
    assert card.sentence == (
        "FedBiCross reaches a mean accuracy of 60.0 %: 2.0 points below local-only (62.0 %), level with "
        "local-only, same budget (60.0 %) and 1.0 point above FedAvg-1 (59.0 %)."
    )
    assert [bar.difference for bar in card.bars] == ["", "−2.0", "±0.0", "+1.0"]


OWN_FILES = ("clustering.json", "inversion.json", "weights.json", "synthetic.safetensors", "synthetic.json")


def of_method(folder: Path, method: str, title: str, setting: str = "") -> Path:
    """Make a run of another method out of one of FedBiCross, without the files that only FedBiCross has."""
    config = folder / "config.toml"
    config.write_text(f'method = "{method}"\n{config.read_text("utf-8")}{setting}', encoding="utf-8")

    def rename(content: Any) -> None:
        content["rows"] = [row for row in content["rows"] if row["name"] != title]
        content["rows"][-2]["name"], content["rows"][-1]["name"] = title, f"{title}, fine-tuned"

    edit(folder / "metrics.json", rename)
    for name in OWN_FILES:
        (folder / name).unlink()
    return folder


def test_a_page_is_about_its_runs_method(run_folder: Path) -> None:
    page = words_only(of_method(run_folder, "dense", "DENSE"))
    text = page.text()
    assert "DENSE, fine-tuned reaches a mean accuracy of" in text
    assert "Signed numbers: DENSE, fine-tuned minus that method" in text
    assert "local-only DENSE, fine-tuned ± local-only DENSE, fine-tuned ±" in text
    run = load_run(run_folder)
    assert run.results is not None
    own, last = run.results.row("local-only"), run.results.row("DENSE, fine-tuned")
    assert own is not None and last is not None
    first = client_lines(run)[0].scores[0]
    assert first[:2] == tuple(percent(row.scores["global"][0].accuracy) for row in (own, last))
    assert "sends that model once" in text
    for missing in ("Who is like whom", "Synthetic images", "Who learns from whom", "FedBiCross reaches"):
        assert missing not in text


def test_fedavg_is_about_what_clients_make_of_it(run_folder: Path) -> None:
    of_method(run_folder, "fedavg", "FedAvg-1")
    bars = headlines(results_table(load_run(run_folder)))[0].bars
    assert [bar.name for bar in bars] == [
        "FedAvg-1, fine-tuned",
        "local-only",
        "local-only, same budget",
        "FedAvg-1",
    ]


def test_what_is_sent_is_said_as_it_is(make_run: MakeRun) -> None:
    def sentence(folder: Path) -> str:
        return exchange(load_run(folder))

    rounds = of_method(make_run("rounds"), "flower:FedAvg", "FedAvg", "\n[flower]\nrounds = 7\n")
    assert sentence(rounds).startswith("In each of 7 rounds it receives the common model")
    pacfl = make_run("pacfl")
    config = pacfl / "config.toml"
    assert "singular vectors" not in sentence(pacfl)
    config.write_text(
        config.read_text("utf-8").replace("[clustering]", '[clustering]\nby = "pacfl"'), "utf-8"
    )
    assert "With its model it sends singular vectors of its images" in sentence(pacfl)
    assert "singular vectors that each client computes" in clustering_text(load_run(pacfl))
    one = load_run(pacfl)
    for method, sends in (("clustered-fedavg", True), ("fedavg", False)):  # one of one's own, and one of ours
        run = dataclasses.replace(one, config={**one.config, "method": method})
        assert ("singular vectors" in exchange(run)) is sends


def test_a_central_model_is_no_federation(make_run: MakeRun) -> None:
    folder = of_method(make_run(), "central", "any")

    def one_row(content: Any) -> None:
        row = content["rows"][-1] | {"name": "central", "kind": "ceiling", "note": "One model for all."}
        content["rows"] = [row]

    edit(folder / "metrics.json", one_row)
    text = words_only(folder).text()
    assert "Each client is one hospital. One model for all." in text and "sends that model" not in text
    assert "reaches a mean accuracy" not in text


def test_a_broken_file_leaves_an_earlier_report_alone(run_folder: Path) -> None:
    write_bytes(run_folder / "report.html", b"an earlier report")
    (run_folder / "metrics.json").write_text("{", encoding="utf-8")
    with pytest.raises(FedBiCrossError, match=r"metrics\.json is not valid JSON"):
        write_report(run_folder)
    assert (run_folder / "report.html").read_bytes() == b"an earlier report"


def test_equal_folders_give_equal_pages_and_no_stray_files(run_folder: Path, reported_run: Path) -> None:
    expected = {path.name for path in run_folder.iterdir()} | {"figures", "report.html"}
    page = write_report(run_folder).read_bytes()
    assert page == (reported_run / "report.html").read_bytes()
    assert {path.name for path in run_folder.iterdir()} == expected
    assert {path.suffix for path in (run_folder / "figures").iterdir()} == {".png"}


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_bytes(tmp_path / "report.html", b"old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(FedBiCrossError, match=r"cannot write .*report\.html: No space left on device"):
        write_bytes(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
