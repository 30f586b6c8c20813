import subprocess
import sys

import pytest

from ecapa_jax.convert.readers.hyperpyyaml import Hyperparams
from ecapa_jax.convert.run import convert
from ecapa_jax.errors import ConversionError
from helpers.checkpoints import HYPERPARAMS, SB_CONFIG
from helpers.checkpoints import speechbrain as publish


def conversion_error(directory, **options):
    with pytest.raises(ConversionError) as error:
        convert(directory, **options)
    message = str(error.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


VALUES = """\
top: 7
part: !new:a.B
    int: -3
    float: 2.5e-3
    int_of_other_length: 12345678901234567890
    none: ~
    "quoted": "80"
    bool: True
    word: yes
    octal: 017
    minutes: 1:30
    list: [1, !ref <top>, x]
    ref: !ref <top>
    chain: !ref <again>
    expression: !ref <top> * 2
    path: !ref <top>/file
    item: !ref <part[int]>
    call: !name:c.D
    nested: [[1]]
    mapping: {a: 1}
    long: [LONG]
again: !copy  <top>
empty: !new:a.C
""".replace("LONG", ", ".join("1" * 65))


def test_values_equal_those_of_a_yaml_parser(tmp_path):
    (tmp_path / "h.yaml").write_text("\ufeff" + VALUES, "utf-8")
    file = Hyperparams(tmp_path / "h.yaml")
    tag, values = file.read_part("part")
    assert tag == "!new:a.B"
    read = {name: value for name, value in values.items() if not repr(value).startswith(("a ", "!"))}
    assert read == {
        "int": -3, "float": 2.5e-3, "int_of_other_length": 12345678901234567890.0, "none": None, "quoted": "80",
        "bool": True, "word": "yes", "octal": "017", "minutes": "1:30", "list": [1, 7, "x"], "ref": 7, "chain": 7,
    }  # fmt: skip
    assert {name: repr(value) for name, value in values.items() if name not in read} == {
        "expression": "!ref <top> * 2", "path": "!ref <top>/file", "item": "!ref <part[int]>", "call": "!name:c.D",
        "nested": "a list (tag:yaml.org,2002:seq)", "mapping": "a mapping (tag:yaml.org,2002:map)",
        "long": "a list (tag:yaml.org,2002:seq)",
    }  # fmt: skip
    assert file.read_part("empty") == ("!new:a.C", {})
    assert file.read_part("nothing") is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a YAML mapping"),
        (b"- 1\n", "not a YAML mapping"),
        (b"a: [1, 2", "it is not YAML"),
        (b"a: 1\n\tb: 2\n", "it is not YAML"),
        (b"a: 1\n---\nb: 2\n", "it is not YAML"),
        (b"\xff\xfe\x00", "it is not YAML"),
        (b"a: \x00", "it is not YAML"),
        (b"a: *nowhere", "it is not YAML"),
        (b"[" * 5000, "nested too deeply"),
        (b"a: " + b"b" * 300_000, "larger than 256 kB"),
        (b"a: &a [*a]\n", "it defines no compute_features"),
    ],
)
def test_invalid_file_is_refused(tmp_path, data, words):
    publish(tmp_path)
    (tmp_path / "hyperparams.yaml").write_bytes(data)
    message = conversion_error(tmp_path)
    assert message.startswith(f"{tmp_path / 'hyperparams.yaml'}: ")
    assert words in message


@pytest.mark.parametrize(
    "line",
    [
        "run: !apply:os.system ['touch {0}']",
        "run: !new:subprocess.Popen\n    args: 'touch {0}'\n    shell: True",
        "run: !!python/object/apply:os.system ['touch {0}']",
        "run: !!python/object/new:os.system ['touch {0}']",
        "run: !include:/etc/passwd",
        "? !!python/object/apply:os.system ['touch {0}']\n: 1",
        "run: !applyref:os.system\n    command: 'touch {0}'",
        "run: !module:antigravity",
    ],
)
def test_code_in_the_file_is_not_executed(tmp_path, line):
    sentinel = tmp_path / "ran"
    line = line.replace("{0}", str(sentinel))
    assert convert(publish(tmp_path, ("out_n_neurons: 7205", f"out_n_neurons: 7205\n{line}"))).config == SB_CONFIG
    (tmp_path / "hyperparams.yaml").write_text(f"{line}\n")
    assert "it defines no compute_features" in conversion_error(tmp_path)
    (tmp_path / "hyperparams.yaml").write_text(
        HYPERPARAMS.replace("n_mels: 80\n", line.replace("run:", "n_mels:") + "\n")
    )
    assert "n_mels" in conversion_error(tmp_path)
    assert not sentinel.exists()
    assert "antigravity" not in sys.modules


BOMBS = {
    "sequences": "&a{n} [{refs}]",
    "mappings": "&a{n} {{k0: *a{m}, k1: *a{m}, k2: *a{m}, k3: *a{m}, k4: *a{m}, k5: *a{m}, k6: *a{m}, k7: *a{m}}}",
    "merges": "&a{n} {{<<: [{refs}]}}",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_nested_anchors_use_little_memory(tmp_path, kind):
    lines = ["a0: &a0 [boom]" if kind == "sequences" else "a0: &a0 {k: boom}"]
    lines += [f"a{n}: " + BOMBS[kind].format(n=n, m=n - 1, refs=", ".join([f"*a{n - 1}"] * 9)) for n in range(1, 30)]
    bomb = ("n_mels: 80\n", "n_mels: 80\n" + "\n".join(lines) + "\n")
    argument = "groups" if kind == "sequences" else "activation"
    (tmp_path / "used").mkdir()
    publish(tmp_path, bomb)
    publish(tmp_path / "used", bomb, ("lin_neurons: 192", f"lin_neurons: 192\n    {argument}: *a29"))
    code = (
        "import resource, sys; from pathlib import Path; from ecapa_jax.convert.family import Source\n"
        "from ecapa_jax.convert.sources.speechbrain import companions\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "for name in sys.argv[1:]:\n"
        "    try: print(companions(Source(path=Path(name) / 'embedding_model.ckpt')).config.ecapa.embedding_dim)\n"
        "    except Exception as error: print(str(error)[-200:])\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    command = [sys.executable, "-c", code, tmp_path, tmp_path / "used"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    accepted, named, grown = done.stdout.splitlines()
    assert accepted == "192"
    assert f"{argument} is a list" in named or f"{argument} a mapping" in named
    assert int(grown) < 50  # MB
