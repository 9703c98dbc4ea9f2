# SPDX-License-Identifier: MIT
"""Policies in files: mistakes of the file itself."""

import os
from pathlib import Path

import pytest

from nfq_guard.errors import ConfigError
from nfq_guard.policyfile import load_compiled, load_policy, parse_toml, read_table, read_toml

FINE = '[policy]\ndefault = "allow"\n'


def _said(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_policy(str(path))
    assert caught.value.exit_status == 2
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("octets", "said"),
    [
        (b"[policy]\ndefault = \xff", "2:11: expected valid UTF-8, found the byte 0xff"),
        (b'[policy]\ndefault = "a', "2:13: expected valid TOML, found"),
        (b"[policy\n", "1:8: expected valid TOML, found"),
        (b"a = " + b"[" * 100_000, "expected valid TOML, found arrays or tables that are nested"),
        (b"\na = " + b"9" * 5_000, "2:5: expected valid TOML, found a number with too many digits"),
        *(
            (
                b"[policy]\nx = [{ y = 0" + base + b"7" * 15_000 + b" }]",
                "policy.x[0].y: expected valid TOML, found a number with too many digits (line 2)",
            )
            for base in (b"x", b"o")
        ),
        (
            b"[daemon]\nqueue = 0b" + b"1" * 15_000,
            "daemon.queue: expected valid TOML, found a number with too many digits (line 2)",
        ),
        (b"\xef\xbb\xbf[policy]\n", "1:1: expected valid TOML, found a byte order mark (U+FEFF)"),
        (
            b'[policy]\n[[policy.rule]]\nsrc = ["a", "b\\u0000"]',
            "policy.rule[0].src[1]: expected text without a NUL character, found 'b\\x00' (line 3)",
        ),
        (b'x = """a"""""\n' + b"a." * 20, "2:1: expected keys of at most 16 parts, found more"),
        (b"", "policy: expected a table [policy], found nothing"),
        (b"\0", "1:1: expected valid TOML, found"),
        (b"[policy]\n" + b"a." * 1_000, "2:1: expected keys of at most 16 parts, found more"),
        (b"[" + b'"a" . ' * 1_000, "1:1: expected keys of at most 16 parts, found more"),
        (b"x = {" + b"'a'.b." * 800, "1:1: expected keys of at most 16 parts, found more"),
        (b"#" * ((1 << 20) + 1), "expected a file of at most 1 MiB, found more than 1048576 bytes"),
    ],
)
def test_wrong_text(tmp_path: Path, octets: bytes, said: str) -> None:
    path = tmp_path / "p.toml"
    path.write_bytes(octets)
    assert _said(path).startswith(said)


def test_long_values_are_no_long_keys(tmp_path: Path) -> None:
    path = tmp_path / "p.toml"
    value = "ends here... " * 30 + "10.0.0.0/8, " * 30
    path.write_text(f"[policy] # {value}\nx = '{value}'\na.b.c = 1.5\n", encoding="ascii")
    assert read_toml(path)["policy"] == {"x": value, "a": {"b": {"c": 1.5}}}
    # A name with as many parts as a long key has, in a comment and in strings of every kind.
    name = ".".join("8b7c6d5e4f3a29180000000000000000") + ".ip6.arpa"
    text = f'# {name}\na="{name}"\nb=\'{name}\'\nc="""\n{name}"""\n'
    path.write_text(text, encoding="ascii")
    assert read_toml(path) == dict.fromkeys("abc", name)
    quoted = f'say \\"hello\\" {name} ""to"" '
    path.write_text(f"""a = \"""\n{quoted}\"""\nb = '''\n{quoted}'''\n""", encoding="ascii")
    assert read_toml(path) == {"a": quoted.replace("\\", ""), "b": quoted}


@pytest.mark.parametrize("opening", ['"""', "'''", '"', "'"])
@pytest.mark.parametrize("rest", ['\\"', '""a', "''a", "a."])
def test_a_long_string_without_end_is_read_once(opening: str, rest: str) -> None:
    """The time is in proportion to the length: 0.2 s, and not hours."""
    text = f"# {'.' * 20}\na = {opening}{rest * (1 << 18)}"
    with pytest.raises(ConfigError, match="expected valid TOML"):
        parse_toml(text.encode(), "p.toml")


def test_no_such_file(tmp_path: Path) -> None:
    said = "expected a readable file, found No such file or directory"
    assert _said(tmp_path / "none.toml") == said


def test_directory(tmp_path: Path) -> None:
    assert _said(tmp_path) == "expected a readable file, found something other than a regular file"


def test_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    assert "other than a regular file" in _said(tmp_path / "fifo")


def test_read_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A read error is reported like any mistake of the file."""
    del monkeypatch, tmp_path
    with pytest.raises(ConfigError, match="a readable file"):
        read_toml("/proc/self/mem")


def test_includes_are_relative_to_their_file(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "p.toml").write_text('[policy]\ninclude = "sub/a.toml"\n')
    (tmp_path / "sub" / "a.toml").write_text('[policy]\ninclude = ["b.toml", "preset:observe"]\n')
    (tmp_path / "sub" / "b.toml").write_text('[policy]\n[[policy.rule]]\nname = "b"\naction="log"')
    model = load_policy(str(tmp_path / "p.toml"))
    assert [rule.name for rule in model.rules] == ["b"]


def test_circular_include(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('[policy]\ninclude = "q.toml"\n')
    (tmp_path / "q.toml").write_text('[policy]\ninclude = "./p.toml"\n')
    assert "expected no circular include, found " in _said(tmp_path / "p.toml")


def test_included_files_have_a_policy_only(tmp_path: Path) -> None:
    (tmp_path / "p.toml").write_text('[policy]\ninclude = ["q.toml", "r.toml"]\n')
    (tmp_path / "q.toml").write_text("[policy]\n[daemon]\n")
    (tmp_path / "r.toml").write_text("policy = 5\n")
    said = _said(tmp_path / "p.toml")
    assert "q.toml: daemon): expected only the table [policy], found 'daemon'" in said
    assert "r.toml: policy): expected a table [policy], found nothing" in said


def test_near_preset() -> None:
    with pytest.raises(ConfigError, match="did you mean 'kube-proxy'"):
        load_policy("preset:kubeproxy")


def test_no_table_is_the_default() -> None:
    model = read_table(None, "x").model
    assert model is not None
    assert model.source == "preset:default"


def test_table_of_a_configuration(tmp_path: Path) -> None:
    table = {"include": "preset:default", "rule": [{"action": "log", "dport": 53}]}
    model = read_table(table, str(tmp_path / "p.toml")).model
    assert model is not None
    assert len(model.rules) == 11
    assert load_compiled("preset:default").model.rules == model.rules[1:]


def test_the_lines_of_mistakes(tmp_path: Path) -> None:
    """Of keys, and else of the nearest table or key around them."""
    file = tmp_path / "p.toml"
    file.write_text(
        '[policy]\ndefault = "alow"\n\n[[policy.rule]]\nreason = "seq-over"\naction = "drop"\n'
        '[[ policy . rule ]]\n"reason" = ["no-entry",\n "sec-over"]\n'
        '[[policy.rule]]\nrate = { per_s = "x" }\naction = "drop"\n',
        encoding="utf-8",
    )
    with pytest.raises(ConfigError) as refused:
        load_policy(str(file))
    lines = {mistake.key: mistake.line for mistake in refused.value.mistakes}
    assert lines["policy.default"] == 2
    assert lines["policy.rule[1].reason[1]"] == 9
    assert lines["policy.rule[1].action"] == 7
    assert {line for key, line in lines.items() if key.startswith("policy.rule[2].rate")} == {11}
    assert "policy.default: expected drop" in str(refused.value)
    assert "'alow' (did you mean 'allow'?) (line 2)" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ('# a\n# b\n\n[policy]\n# c\ninclude = "preset:nosuch"\n', "policy.include", 6),
        (
            '[policy]\ninclude = [\n "preset:default",\n "no (such).toml",\n]\n',
            "policy.include[1]",
            4,
        ),
        ('[policy]\ndefault = "allow"\ninclude = 7\n', "policy.include", 3),
    ],
)
def test_the_line_of_an_include(tmp_path: Path, text: str, key: str, line: int) -> None:
    file = tmp_path / "p.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_policy(str(file))
    lines = {one.key.partition(" (")[0]: one.line for one in refused.value.mistakes}
    assert lines[key] == line


def test_a_mistake_of_an_included_file_has_its_line_there(tmp_path: Path) -> None:
    (tmp_path / "more.toml").write_text("[policy]\nnonsense = 1\n", encoding="utf-8")
    file = tmp_path / "p.toml"
    file.write_text('[policy]\ninclude = "more.toml"\n', encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_policy(str(file))
    assert [one.line for one in refused.value.mistakes if "nonsense" in one.key] == [2]
    text = '[policy]\n\ninclude = "preset:nosuch"\n'
    (tmp_path / "more.toml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        load_policy(str(file))
    assert [one.line for one in refused.value.mistakes if "nosuch" in str(one)] == [3]
