"""Traced integers: clean traces that a replay confirms, noise at the rates that were asked for, the same set again."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skerry.bench import traced_integer_algorithms as algorithms
from skerry.bench.traced_integer import (
    Noise,
    TInt,
    TraceTask,
    check_trace,
    evaluate,
    few_shot_prompt,
    traced,
    write_jsonl,
)
from skerry.bench.traced_integer_core import Trace, TraceLimit, render
from skerry.core.errors import DataError, ParameterError

OPERATIONS = ("add", "sub", "mul", "div", "mod", "gcd", "sort", "median", "mixed")
BIG = st.integers(0, 10**30)
OFFICIAL = """x = 5 7 , y = 6 8
res = 0
carry = 0
digx = 7
digy = 8
x = 5
y = 6
ds = 1 5
res = 5
carry = 1
digx = 5
digy = 6
x = 0
y = 0
ds = 1 1
ds = 1 2
res = 2 5
carry = 1
res = 1 2 5
1 2 5"""


@traced
def horner(coefficients, x):
    """A user's function; the library knows nothing of it."""
    value = TInt(0)
    for c in coefficients:
        value = value * x + c
    return value


def horner_task(**options):
    def sample(rng):
        return [rng.randrange(10) for _ in range(3)], rng.randrange(1, 20)

    return TraceTask(horner, sample=sample, **options)


# Numbers ---------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(BIG, BIG)
def test_algebra_agrees_with_python(x, y):
    a, b = TInt(x), TInt(y)
    assert int(a + b) == x + y
    assert int(a * b) == x * y
    assert int(max(a, b) - min(a, b)) == abs(x - y)
    assert (a < b, a <= b, a == b, a > b, a >= b) == (x < y, x <= y, x == y, x > y, x >= y)
    if y:
        assert (int(a // b), int(a % b)) == (x // y, x % y)
    assert int(a | b) == int(f"{x}{y}")
    assert (int(a >> 2), int(a << 2), int(a[0]), int(a[99])) == (x // 100, x * 100, x % 10, 0)


def test_the_empty_string_is_zero():
    empty = TInt()
    assert (len(empty), int(empty), render(empty)) == (0, 0, "0")
    assert empty == 0 == TInt("0") and not empty
    assert int(empty + 7) == 7 and int(7 * empty) == 0 and (TInt(7) | empty).digits == "7"
    assert int(5 - empty) == 5 and int(9 // TInt(2)) == 4 and int(9 % TInt(2)) == 1


def test_what_is_no_natural_number_is_refused():
    for bad in (-3, "1x", "²", 1.5):
        with pytest.raises(ParameterError, match="natural number"):
            TInt(bad)
    with pytest.raises(ParameterError, match="3 - 5 is negative"):
        TInt(3) - 5
    with pytest.raises(ZeroDivisionError):
        TInt(3) // 0


# Traces ----------------------------------------------------------------------------------------------------------


def test_the_official_example_character_for_character():
    document = TraceTask("add").document((57, 68))
    assert document.prompt == "5 7 + 6 8"
    assert document.response == OFFICIAL


@pytest.mark.parametrize(("digits", "lines", "characters"), [(3, 22, 199), (10, 56, 587)])
def test_traces_of_addition_are_as_long_as_those_of_the_official_generator(digits, lines, characters):
    documents = TraceTask("add", max_size=digits).generate(150, seed=1)
    assert sum(len(d.lines) for d in documents) / 150 == pytest.approx(lines, rel=0.07)
    assert sum(len(d.response) for d in documents) / 150 == pytest.approx(characters, rel=0.07)


@pytest.mark.parametrize("op", OPERATIONS)
def test_clean_traces_end_in_pythons_result_and_every_line_follows(op):
    documents = TraceTask(op, max_size=3).generate(150, seed=4)
    assert len(documents) == 150
    for d in documents:
        values = [[int(v) for v in a] if isinstance(a, list) else int(a) for a in d.args]
        want = {
            "add": lambda x, y: x + y,
            "sub": lambda x, y: x - y,
            "mul": lambda x, y: x * y,
            "div": lambda x, y: x // y,
            "mod": lambda x, y: x % y,
            "gcd": lambda x, y: __import__("math").gcd(x, y),
            "sort": lambda xs: f"[{','.join(map(str, sorted(xs)))}]",
            "median": lambda xs: sorted(xs)[2],
            "mixed": lambda xs: (xs[0] + xs[1]) * xs[2],
        }[op](*values)
        assert d.answer == str(want) == "".join(d.lines[-1].split())
        assert not check_trace(d)
        assert len(d.lines) <= 300 and not d.is_noised


def test_answers_of_larger_numbers():
    rng = random.Random(0)
    for op in ("add", "sub", "mul", "div", "mod"):
        task, function = TraceTask(op, max_size=5), getattr(algorithms, op)
        sign = {"add": int.__add__, "sub": int.__sub__, "mul": int.__mul__, "div": int.__floordiv__, "mod": int.__mod__}
        for _ in range(1000):
            x, y = task._arguments(rng)
            assert int(function(TInt(x), TInt(y))) == sign[op](x, y)


def test_levels_of_visibility():
    shown = TraceTask("mixed", n_args=2).document(([12, 5],))
    assert "total = 1 2 + 5" in shown.lines and "ds = 7" in shown.lines
    call = TraceTask("mixed", n_args=2, visible=("mixed",), call=("add",)).document(([12, 5],))
    assert call.lines == ["items = [ 1 2 , 5 ]", "total = 1 2", "i = 1", "item = 5", "total = 1 7", "1 7"]
    median = TraceTask("median").document(([31, 4, 9, 2, 5],))
    assert median.lines[1] == "ordered = sort ( [ 3 1 , 4 , 9 , 2 , 5 ] )"
    hidden = TraceTask("median", call=("sort",), visible=("median",)).document(([31, 4, 9, 2, 5],))
    assert [line for line in hidden.lines if "min_item" in line] == []
    assert "ordered = sort ( [ 3 1 , 4 , 9 , 2 , 5 ] )" in hidden.lines
    assert TraceTask("median", visible=()).document(([31, 4, 9, 2, 5],)).lines == ["5"]


def test_names_inside_of_names_are_left_alone():
    @traced
    def tricky(x, xx):
        xxx = helper(x, xx)
        return xxx

    @traced
    def helper(x, xx):
        return x + xx

    lines = TraceTask(tricky, visible=("tricky", "helper")).document((1, 23)).lines
    assert lines == ["x = 1 , xx = 2 3", "xxx = helper ( 1 , 2 3 )", "x = 1 , xx = 2 3", "xxx = 2 4", "2 4"]


def test_a_users_function_is_traced_without_change_to_the_library():
    d = horner_task().document(([1, 2, 3], 10))
    assert d.prompt == "horner ( [ 1 , 2 , 3 ] , 1 0 )"
    assert d.answer == "123"
    assert "c = 2" in d.lines and "value = 1 2 3" in d.lines
    assert int(horner([1, 2, 3], 10)) == 123  # outside of a trace it is itself
    for d in horner_task(visible=("horner", "add", "mul")).generate(100, noise=Noise(dynamic=0.1)):
        assert {w.line for w in check_trace(d)} <= set(d.noised_lines)


def test_statements_of_every_kind():
    offset = 3

    @traced
    def many(items, *, twice=True):
        """Return something, by every kind of statement."""
        total: TInt = TInt(0)
        table = [TInt(0), TInt(0)]
        for k, item in enumerate(items):
            total += item
            table[k % 2] = item
        a, b = table
        while a > 50:
            a = a >> 1
        if twice:
            total = total * 2
        return total + a + b + offset

    trace = Trace({"many": "visible"})
    result = trace.run(many, [TInt(7), TInt(60)])
    assert int(result) == 2 * 67 + 7 + 60 + 3 == int(many([TInt(7), TInt(60)]))
    assert trace.lines[:4] == [
        "items = [ 7 , 6 0 ]",
        "total = 0",
        "table = [ 0 , 0 ]",
        "k = 0 , item = 7",
    ]
    assert "table = [ 7 , 0 ]" in trace.lines and "a = 7 , b = 6 0" in trace.lines


def test_traces_do_not_share_state():
    inner = []

    @traced
    def outer(x):
        inner.append(TraceTask("add").document((57, 68)).response)
        y = x + 1
        return y

    assert TraceTask(outer, n_args=1).document((4,)).lines == ["x = 4", "y = 5", "5"]
    assert set(inner) == {OFFICIAL}


def test_long_traces_are_drawn_anew_never_cut():
    task = TraceTask("mul", max_size=4, line_limit=60)
    for d in task.generate(50):
        assert len(d.lines) <= 60 and not check_trace(d)
    with pytest.raises(TraceLimit):
        task.document((9999, 9999))
    with pytest.raises(DataError, match="0 of 3 documents found"):
        TraceTask("mul", min_size=5, line_limit=5).generate(3)


def test_sampling():
    lengths = [len(str(int(d.args[0]))) for d in TraceTask("add", max_size=5).generate(2000)]
    assert all(abs(lengths.count(k) / 2000 - 0.2) < 0.04 for k in range(1, 6))
    numbers = [int(d.args[0]) for d in TraceTask("add", sampling="mag", min_size=10, max_size=20).generate(500)]
    assert set(numbers) == set(range(10, 20))
    assert all(int(x) >= int(y) > 0 for x, y in (d.args for d in TraceTask("div", max_size=2).generate(500)))


# Noise -----------------------------------------------------------------------------------------------------------


def clean_and_noisy(task, n, **noise):
    return task.generate(n, seed=5), task.generate(n, seed=5, noise=Noise(**noise))


def within(count, trials, p, sigmas=3.5):
    return abs(count / trials - p) <= sigmas * (p * (1 - p) / trials) ** 0.5 + 1e-9


@pytest.mark.parametrize("p", [0.0, 0.3, 0.9])
def test_character_noise(p):
    clean, noisy = clean_and_noisy(TraceTask("add", max_size=4), 400, char=p)
    digits = sum(d.digits for d in noisy)
    assert within(sum(d.changed_digits for d in noisy), max(1, digits), 0.9 * p)
    for a, b in zip(clean, noisy, strict=True):
        assert a.prompt == b.prompt and a.lines[-1] == b.lines[-1] and a.answer == b.answer
        assert [len(line.split()) for line in a.lines] == [len(line.split()) for line in b.lines]
        names = [[w for w in d.response.split() if not w.isdigit()] for d in (a, b)]
        assert names[0] == names[1]
    assert (p > 0) or [d.response for d in clean] == [d.response for d in noisy]
    assert noisy.rates()["wrong_answers"] == 0
    spoilt = TraceTask("add", max_size=4).generate(400, noise=Noise(char=0.9, noise_answer=True))
    assert spoilt.rates()["wrong_answers"] > 0.8


def test_line_noise():
    clean, noisy = clean_and_noisy(TraceTask("add", max_size=4), 400, line=0.3)
    deleted, lines = sum(d.deleted_lines for d in noisy), sum(len(d.lines) - 1 for d in clean)
    assert within(deleted, lines, 0.3)
    for a, b in zip(clean, noisy, strict=True):
        assert a.lines[-1] == b.lines[-1]
        left = iter(a.lines)
        assert all(line in left for line in b.lines)  # a subsequence, in order


@pytest.mark.parametrize("op", OPERATIONS)
def test_dynamic_noise_is_the_only_inconsistency(op):
    clean, nothing = clean_and_noisy(TraceTask(op, max_size=3), 40, dynamic=0.0)
    assert [d.response for d in clean] == [d.response for d in nothing]
    found = 0
    for d in TraceTask(op, max_size=3).generate(80, noise=Noise(dynamic=0.1)):
        wrong = {w.line for w in check_trace(d)}
        assert wrong <= set(d.noised_lines)
        found += len(wrong)
    assert found > 0


def test_dynamic_noise_on_every_construction_of_an_addition():
    noisy = TraceTask("add", max_size=5, min_size=3).generate(
        200, noise=Noise(dynamic=0.1, dynamic_mode="constructions")
    )
    rates = noisy.rates()
    assert rates["wrong_answers"] > 0.9  # it compounds: a digit passes through many constructions
    strong = TraceTask("add", max_size=5, min_size=3).generate(
        200, noise=Noise(dynamic=0.2, dynamic_mode="constructions")
    )
    assert strong.rates()["wrong_answers"] > 0.98  # the official generator: no answer survives at 0.2
    assert rates["inconsistent_documents"] > 0.9
    mild = TraceTask("add", max_size=5, min_size=3).generate(200, noise=Noise(dynamic=0.1))
    assert rates["inconsistent_lines"] > mild.rates()["inconsistent_lines"]


def test_steps_follow_from_wrong_values():
    noisy = TraceTask("add", max_size=5, min_size=5).generate(300, noise=Noise(dynamic=0.05))
    wrong_answers = [d for d in noisy if "".join(d.lines[-1].split()) != d.answer]
    assert len(wrong_answers) > 100
    assert all(d.lines[-2] == f"res = {d.lines[-1]}" or d.lines[-2].startswith("carry") for d in wrong_answers)


@pytest.mark.parametrize("kind", [{"char": 0.5}, {"line": 0.3}, {"dynamic": 0.3}])
def test_contamination_is_a_share_of_documents(kind):
    clean, noisy = clean_and_noisy(TraceTask("add", min_size=3, max_size=4), 300, contamination=0.4, **kind)
    prompts = {d.prompt: d.response for d in clean}
    differ = sum(prompts.get(d.prompt, d.response) != d.response for d in noisy)
    assert within(differ, 300, 0.4)
    assert within(sum(d.is_noised for d in noisy), 300, 0.4)
    assert noisy.rates()["inconsistent_documents"] == pytest.approx(0.4, abs=0.1)
    kept = noisy.consistent()
    assert 0 < len(kept) < 300 and not any(check_trace(d) for d in kept)


def test_the_checker_sees_edits_of_every_kind():
    d = TraceTask("add").document((57, 68))
    lines = d.lines

    def wrong(new):
        return check_trace(d, "\n".join(new))

    assert [w.line for w in wrong([*lines[:3], *lines[4:]])] == [3]
    assert wrong([*lines[:3], "foreign = 3", *lines[3:]])[0] == (3, "", "foreign = 3")
    assert wrong([*lines[:-1], "1 2 6"]) == [(len(lines) - 1, "125", "1 2 6")]
    assert wrong([*lines[:-1], "nonsense"])
    assert wrong([""])
    assert wrong(["x = 5 7 , y = 6 9", *lines[1:]])[0].line == 0
    assert not wrong(lines)


# Sets ------------------------------------------------------------------------------------------------------------


def test_same_seed_same_set_on_any_number_of_processes():
    task, noise = TraceTask("add", max_size=3), Noise(contamination=0.5, char=0.3, line=0.1, dynamic=0.1)
    one = [(d.prompt, d.response) for d in task.generate(120, noise, seed=3)]
    assert one == [(d.prompt, d.response) for d in task.generate(120, noise, seed=3, n_jobs=2)]
    assert one[:50] == [(d.prompt, d.response) for d in task.generate(50, noise, seed=3)]
    assert one != [(d.prompt, d.response) for d in task.generate(120, noise, seed=4)]


def test_no_question_twice_across_train_and_test():
    task = TraceTask("add", max_size=2)
    test = task.generate(300, seed=1, unique=True)
    prompts = {d.prompt for d in test}
    assert len(prompts) == 300
    assert not prompts & {d.prompt for d in task.generate(1000, seed=2, exclude=prompts)}
    with pytest.raises(DataError, match="100 of 101 documents found"):
        TraceTask("add", max_size=1).generate(101, unique=True)


def test_rates_of_answers_only():
    answers = TraceTask("add", max_size=3).generate(20).answers_only()
    assert all(d.response == d.lines[-1] for d in answers)
    assert answers[2:5][0].prompt == answers[2].prompt


# Protocols -------------------------------------------------------------------------------------------------------


def test_evaluation():
    documents = TraceTask("add", max_size=2).generate(10)
    half = [d.response if i % 2 else "x = 1\nwhat?" for i, d in enumerate(documents)]
    scores = evaluate(lambda prompts: half, documents)
    assert scores["accuracy"] == 0.5 and scores["parse_errors"] == 0.5 and 0.4 < scores["line_accuracy"] < 0.6
    with pytest.raises(DataError, match="noised"):
        evaluate(lambda prompts: half, TraceTask("add").generate(10, Noise(char=0.1)))
    with pytest.raises(DataError, match="0 texts for 10 prompts"):
        evaluate(lambda prompts: [], documents)
    with pytest.raises(DataError, match="no documents"):
        evaluate(lambda prompts: [], [])


def test_few_shot_prompts_hold_the_noised_exemplars_and_the_clean_question():
    task = TraceTask("add", max_size=2)
    shots, documents = task.generate(6, Noise(char=0.6), seed=9), task.generate(3)
    seen = []

    def model(prompts):
        seen.extend(prompts)
        return [d.response for d in documents]

    assert evaluate(model, documents, exemplars=shots)["accuracy"] == 1.0
    assert all(s.text in seen[0] for s in shots)
    assert seen[0].endswith(f"\n\n{documents[0].prompt}\n")
    assert few_shot_prompt(shots[:1], "1 + 1", instruction="") == f"{shots[0].text}\n\n1 + 1\n"


@pytest.mark.parametrize(("style", "keys"), [("prompt", "prompt completion"), ("chat", "messages"), ("text", "text")])
def test_files_for_other_trainers(tmp_path, style, keys):
    documents = TraceTask("add", max_size=2).generate(5, Noise(contamination=0.5, char=0.5))
    write_jsonl(documents, tmp_path / "set.jsonl", style)
    rows = [json.loads(line) for line in (tmp_path / "set.jsonl").read_text().splitlines()]
    assert len(rows) == 5 and set(rows[0]) == {*keys.split(), "answer", "noised"}
    if style == "prompt":
        assert rows[0]["prompt"] + rows[0]["completion"] == documents[0].text
    with pytest.raises(ParameterError, match="style is 'csv'"):
        write_jsonl(documents, tmp_path / "set.csv", "csv")
    with pytest.raises(DataError, match="absent"):
        write_jsonl(documents, tmp_path / "absent" / "set.jsonl")


def test_wrong_arguments_are_refused():
    for build, match in (
        (lambda: Noise(char=1.2), "char is 1.2"),
        (lambda: Noise(contamination=-0.1), "contamination"),
        (lambda: Noise(dynamic_mode="lines"), "'assignments', 'constructions'"),
        (lambda: TraceTask("adds"), "did you mean 'add'"),
        (lambda: TraceTask(len), "put @traced above"),
        (lambda: TraceTask("add", sampling="log"), "'len' or 'mag'"),
        (lambda: TraceTask("add", min_size=4, max_size=3), "nothing can be drawn"),
        (lambda: Trace({"f": "visible"}).run(traced(lambda x: x, name="f"), TInt(1)), "only a def"),
        (lambda: TraceTask(nothing, n_args=1).document((1,)), "returned None"),
    ):
        with pytest.raises(ParameterError, match=match):
            build()


@traced
def nothing(x):
    y = x
    del y
