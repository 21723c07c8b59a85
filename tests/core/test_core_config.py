"""The configuration: every complaint names its key, flat settings go round, TOML and overrides."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

from fedbicross_flwr import config_readers
from fedbicross_flwr.config import ClientConfig, RunConfig
from fedbicross_flwr.config_readers import CENTRAL, READER, STRATEGIES_THAT_READ
from fedbicross_flwr.errors import FedBiCrossError, near_names
from fedbicross_flwr.settings import (
    LARGEST_COUNT,
    LARGEST_FLOAT,
    check_value,
    parse_override,
    read_toml,
    walk,
)

DECLARED: dict[str, Any] = {key: declared for key, declared, _ in walk(RunConfig())}
NUMBERS = [key for key, declared in DECLARED.items() if type(declared.default) in (int, float)]
WORDS = [key for key, declared in DECLARED.items() if declared.metadata["choices"]]
LOCAL = {
    "cache",
    "out",
    "data.path",
    "data.root",
    "data.download",
    "cross_cluster.activations",
    "deployment.min_sites",
    "deployment.registry",
    "deployment.upload_window",
    "deployment.personal_window",
    "runtime.reply_timeout",
    "runtime.server_threads",
    "runtime.server_tasks",
    "runtime.tracker",
}


def complaint(flat: dict[str, Any]) -> str:
    with pytest.raises(FedBiCrossError) as caught:
        RunConfig.from_flat(flat)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("key", DECLARED)
def test_a_value_of_the_wrong_type_names_its_key(key: str) -> None:
    kind = type(DECLARED[key].default)
    for wrong in ([1], None, "word" if kind in (int, float, bool) else 3, True if kind is not bool else 1):
        assert key in complaint({key: wrong})


@pytest.mark.parametrize("key", NUMBERS)
def test_numbers_out_of_bounds_name_their_key(key: str) -> None:
    rules, kind = DECLARED[key].metadata, type(DECLARED[key].default)
    assert rules["low"] is not None or rules["above"] is not None, "every number has a lower bound"
    wrong = [rules["above"]] if rules["above"] is not None else [rules["low"] - 1]
    wrong += [rules["high"] + 1] if rules["high"] is not None else []
    for value in wrong:
        assert key in complaint({key: kind(value)}) and f"{kind(value)}" in complaint({key: kind(value)})
    if kind is float:
        assert f"{key} = nan is not a finite number" in complaint({key: math.nan})
        if key != "partition.alpha":  # where it deals evenly
            assert f"{key} = inf" in complaint({key: math.inf})


@pytest.mark.parametrize("key", NUMBERS)
def test_every_number_has_a_largest_which_is_told_in_full(key: str) -> None:
    rules, kind = DECLARED[key].metadata, type(DECLARED[key].default)
    largest = rules["high"] or (LARGEST_COUNT if kind is int else LARGEST_FLOAT)
    value = kind(10**18 if kind is int else 1e300)
    told = f"{largest:.15g}" + (", or inf" if key == "partition.alpha" else "")
    assert complaint({key: value}) == f"{key} = {value} is too large: it must be at most {told}"
    if rules["high"] is None:
        smallest_above = largest + 1 if kind is int else math.nextafter(largest, math.inf)
        assert "too large" in complaint({key: smallest_above})
        check_value(key, kind(largest), DECLARED[key])


def test_no_bound_is_rounded() -> None:
    assert complaint({"seed": 2**31}).endswith("it must be at most 2147483647")
    assert complaint({"client.momentum": 1.0}).endswith("it must be at most 0.9999")


@pytest.mark.parametrize("key", WORDS)
def test_words_that_are_not_offered_name_the_key_and_the_choices(key: str) -> None:
    choices = DECLARED[key].metadata["choices"]
    said = complaint({key: choices[0] + "x"})
    assert key in said and all(word in said for word in choices) and f"did you mean {choices[0]}" in said
    for word in choices:
        assert RunConfig.from_flat({key: word}).flat()[key] == word


@pytest.mark.parametrize(
    ("key", "near"),
    [("client.epoch", "client.epochs"), ("cross_cluster.weigts", "cross_cluster.weights"), ("sed", "seed")],
)
def test_unknown_keys_name_the_near_ones(key: str, near: str) -> None:
    said = complaint({key: 1})
    assert repr(key) in said and near in said


def test_near_names() -> None:
    assert near_names("epohcs", ["epochs", "lr"]) == " (did you mean epochs?)"
    assert near_names("zzz", ["epochs", "lr"]) == ""


@pytest.mark.parametrize(
    ("flat", "words"),
    [
        ({"clustering.clusters": 6}, ["clustering.clusters = 6", "partition.clients = 5"]),
        ({"data.phantom_channels": 2}, ["data.phantom_channels = 2"]),
        ({"cross_cluster.batch_size": 1}, ["cross_cluster.batch_size = 1", "BatchNorm needs two"]),
        ({"inversion.batch_size": 4}, ["inversion.batch_size = 4", "cross_cluster.train_fraction = 0.8"]),
    ],
)
def test_settings_that_do_not_go_together(flat: dict[str, Any], words: list[str]) -> None:
    said = complaint(flat)
    assert all(word in said for word in words)


def test_flat_goes_round() -> None:
    changed = {
        "seed": 7,
        "partition.alpha": math.inf,
        "clustering.clusters": "auto",
        "client.augment": True,
        "out": "here",
        "inversion.iterations": 3,
        "teacher.aggregation": "logits",
        "personal.gamma": 1,
    }
    config = RunConfig.from_flat(changed)
    flat = config.flat()
    assert list(flat) == list(DECLARED) and len(flat) > 60
    assert {key: flat[key] for key in changed} == changed
    assert type(flat["personal.gamma"]) is float, "an integer is taken for a float"
    assert RunConfig.from_flat(flat) == config
    assert RunConfig.from_flat({}) == RunConfig()


def test_direct_construction_is_checked_too() -> None:
    with pytest.raises(FedBiCrossError, match=r"client\.epochs = 0"):
        RunConfig(client=ClientConfig(epochs=0))
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 3  # type: ignore[misc]


SITES: dict[str, Any] = {"deployment.sites": "north, south, west", "deployment.class_names": "round, angular"}
"""Without sites, nothing of the section is read."""


def other_value(key: str) -> Any:
    declared = DECLARED[key]
    default, choices = declared.default, declared.metadata["choices"]
    if choices:
        return next(word for word in choices if word != default)
    if isinstance(default, bool):
        return not default
    if key in ("data.phantom_channels", "deployment.channels"):
        return 1
    if key in ("data.name", "model.name", "runtime.device"):
        return "other"
    if isinstance(default, str):
        return SITES.get(key, default) + "x"
    high = declared.metadata["high"]
    return default / 2 if isinstance(default, float) and high is not None and default > 0 else default + 1


@pytest.mark.parametrize("key", DECLARED)
def test_the_fingerprint_changes_with_shaping_settings_only(key: str) -> None:
    base: dict[str, Any] = dict(SITES) if key.startswith("deployment.") else {}
    if key == "data.path":  # which implies the name
        base["data.name"] = "site"
    if key == "inversion.images_at_once":
        base["inversion.teachers"] = "in_turn"
    if reader := READER.get(key.split(".")[0]):
        strategy = min(STRATEGIES_THAT_READ.get(key, {"FedAvg"}))
        base["method"] = f"flower:{strategy}" if reader == "flower" else reader
    changed = RunConfig.from_flat({**base, key: other_value(key)})
    assert (changed.fingerprint() == RunConfig.from_flat(base).fingerprint()) is (key in LOCAL)


OWN: dict[str, Any] = {
    "dafl.lr": 1.0, "dense.lr": 1.0, "fedisca.lr": 1.0, "coboosting.lr": 1.0, "flower.rounds": 99,
    "clustering.clusters": 3, "inversion.lr": 1.0, "teacher.noise_window": 9, "cross_cluster.sweeps": 9,
    "personal.gamma": 9.0, "personal.replay": 9.0, "personal.logit_adjustment": 9.0,
    "inversion.teachers": "in_turn", "flower.malicious": 2, "flower.q": 9.0,
}  # fmt: skip
"""Settings that few methods read; all but the central model read `COMMON`."""
COMMON: dict[str, Any] = {"fedavg.bn": "first", "personal.epochs": 9, "client.lr": 1.0}


@pytest.mark.parametrize(
    ("method", "read"),
    [
        (
            "fedbicross",
            {*OWN}
            - {
                key
                for key in OWN
                if key.split(".")[0] in ("dafl", "dense", "fedisca", "coboosting", "flower")
            },
        ),
        ("fedavg", set()),
        ("dense", {"dense.lr"}),
        ("fedisca", {"fedisca.lr", "inversion.teachers"}),
        ("flower:Krum", {"flower.rounds", "flower.malicious"}),
        ("flower:FedAvg", {"flower.rounds"}),
        ("central", set()),
        ("somebody's", set(OWN)),
    ],
)
def test_a_run_outlives_a_change_of_what_its_method_does_not_read(method: str, read: set[str]) -> None:
    plain = RunConfig.from_flat({"method": method}).fingerprint()
    for key, value in {**OWN, **COMMON}.items():
        changed = RunConfig.from_flat({"method": method, key: value}).fingerprint()
        common = key in COMMON and (method != CENTRAL or key.startswith("client."))
        assert (changed != plain) is (key in read or common), key


def test_sites_are_not_asked_for_directions_of_their_images() -> None:
    RunConfig.from_flat({"clustering.by": "pacfl"})
    similar = {"cross_cluster.weights": "similarity"}
    assert RunConfig.from_flat(similar).cross_cluster.weights == "similarity"
    with pytest.raises(FedBiCrossError, match=r"clustering.by = 'pacfl' has distances alone"):
        RunConfig.from_flat({**similar, "clustering.by": "pacfl"})
    with pytest.raises(FedBiCrossError, match=r"clustering.by = 'pacfl' .* it is for simulations"):
        RunConfig.from_flat({**SITES, "clustering.by": "pacfl"})


def test_images_at_once_need_teachers_in_turn() -> None:
    alone = {"inversion.images_at_once": 32}
    for method in ("fedbicross", "fedisca"):
        RunConfig.from_flat({"method": method, **alone, "inversion.teachers": "in_turn"})
        with pytest.raises(FedBiCrossError, match=r"images_at_once = 32 needs .*= 'in_turn'"):
            RunConfig.from_flat({"method": method, **alone})
    RunConfig.from_flat({"method": "dense", **alone})


def test_what_is_recomputed_is_not_compiled() -> None:
    both = {"cross_cluster.activations": "recomputed", "runtime.compile": "on"}
    with pytest.raises(FedBiCrossError, match=r"'recomputed' does not go with runtime.compile = 'on'"):
        RunConfig.from_flat(both)
    RunConfig.from_flat({**both, "method": "dense"})
    RunConfig.from_flat({**both, "runtime.compile": "off"})


def test_read_toml_flattens_tables(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text('seed = 3\n[partition]\nalpha = inf\n[client]\nschedule = "step"\naugment = true\n')
    flat = read_toml(file)
    assert flat == {"seed": 3, "partition.alpha": math.inf, "client.schedule": "step", "client.augment": True}
    assert RunConfig.from_flat(flat).client.schedule == "step"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"seed = ", "not valid TOML"),
        (b"\xff\xfe", "not valid TOML"),
        (b"[client]\nlr = [1, 2]\n", "client.lr is a list"),
        (b"[client]\nlr = 2026-01-02\n", "client.lr is a date"),
        (b"[inversoin]\n", "unknown table [inversoin] (did you mean inversion"),
        (b"[seed]\n", "unknown table [seed]"),
        (b"[inversion.lr2]\n", "inversion.lr2 is a dict"),
        (b"[inversoin.x]\n", "inversoin.x is a dict"),
        (b'"client.lr" = 1\n[client]\nlr = 2\n', "gives client.lr twice"),
    ],
)
def test_read_toml_names_the_file_and_the_fault(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(content)
    with pytest.raises(FedBiCrossError) as caught:
        read_toml(file)
    assert str(file) in str(caught.value) and words in str(caught.value)


def test_read_toml_takes_an_empty_section_and_the_mark_of_windows(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(b"\xef\xbb\xbfseed = 3\r\n[inversion]\r\n# lr = 0.1\r\n")
    assert read_toml(file) == {"seed": 3}


def test_read_toml_of_nothing(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.toml", tmp_path):
        with pytest.raises(FedBiCrossError, match="cannot read configuration"):
            read_toml(path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("client.epochs=3", ("client.epochs", 3)),
        ("partition.alpha = 0.1", ("partition.alpha", 0.1)),
        ("partition.alpha=inf", ("partition.alpha", math.inf)),
        ("client.augment=true", ("client.augment", True)),
        ("data.name=bloodmnist", ("data.name", "bloodmnist")),
        ('data.name="bloodmnist"', ("data.name", "bloodmnist")),
        ("data.path=/a b/x=1.npz", ("data.path", "/a b/x=1.npz")),
        ("out=", ("out", "")),
    ],
)
def test_parse_override(text: str, expected: tuple[str, Any]) -> None:
    key, value = parse_override(text)
    assert (key, value) == expected and type(value) is type(expected[1])


@pytest.mark.parametrize("key", NUMBERS)
def test_a_number_that_no_message_can_carry_names_its_key(key: str) -> None:
    for digits in (20, 400, 6_000):
        for sign in (1, -1):
            assert f"{key} is far too large or small" in complaint({key: sign * 10**digits})


@pytest.mark.parametrize("value", ["9" * 400, "0x" + "f" * 9_000, "9" * 9_000, "[" * 9_000])
def test_a_long_number_is_no_traceback_wherever_it_is_written(tmp_path: Path, value: str) -> None:
    assert "client.epochs" in complaint(dict([parse_override(f"client.epochs={value}")]))
    file = tmp_path / "run.toml"
    file.write_text(f"[client]\nepochs = {value}\n")
    with pytest.raises(FedBiCrossError, match=r"run\.toml is not valid TOML|client\.epochs is far too large"):
        RunConfig.from_flat(read_toml(file))


def test_a_name_in_another_encoding_than_utf_8_names_its_key() -> None:
    said = complaint({"data.path": "/data/M\udcfcller"})
    assert said.startswith("data.path = '/data/M\\udcfcller' is no text in UTF-8")


@pytest.mark.parametrize("text", ["client.epochs", "=3", "  =3", ""])
def test_overrides_without_key_or_value_are_shown_how(text: str) -> None:
    with pytest.raises(FedBiCrossError, match="key=value"):
        parse_override(text)


@pytest.mark.parametrize(
    "text", ["client.epochs=3\nseed=1", "a='x'\n[b]\nc=1", "data.name=a\nb", 'x="""a\nb"""']
)
def test_an_override_of_more_than_one_line_is_refused(text: str) -> None:
    with pytest.raises(FedBiCrossError, match="has more than one line; give each setting a --set") as caught:
        parse_override(text)
    assert "\n" not in str(caught.value)
    assert parse_override("seed=1\n") == ("seed", 1)


def test_own_data_go_by_one_name_however_they_were_asked_for() -> None:
    by_path = RunConfig.from_flat({"data.path": "/cells.npz"})
    assert by_path == RunConfig.from_flat({"data.path": "/cells.npz", "data.name": "site"})
    assert by_path.fingerprint() != RunConfig().fingerprint()
    assert RunConfig.from_flat({"data.path": "/x", "data.name": "bloodmnist"}).data.name == "bloodmnist"


def test_a_method_is_not_held_to_what_it_does_not_read() -> None:
    for method in ("fedavg", "dafl", "central", "flower:FedAvg"):
        RunConfig.from_flat({"method": method, "partition.clients": 1, "inversion.batch_size": 4})
    with pytest.raises(FedBiCrossError, match=r"clustering\.clusters = 2 is more than"):
        RunConfig.from_flat({"partition.clients": 1})


def test_a_method_may_read_another_s_section_or_a_single_setting_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(config_readers, "KNOWN", config_readers.KNOWN | {"mine"})
    besides = {("mine", "clustering"), ("mine", "inversion.teachers")}
    monkeypatch.setattr(config_readers, "READ_BESIDES", besides)
    read = [key for key in RunConfig().flat() if config_readers.reads("mine", key)]
    sections = {key.partition(".")[0] for key in read}
    assert {"clustering.clusters", "clustering.by", "inversion.teachers", "client.lr"} <= {*read}
    assert "inversion.lr" not in read and not {"teacher", "cross_cluster", "fedisca"} & sections
