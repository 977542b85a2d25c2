"""OliVe's codec against a scalar reference over all pairs, the search, and the stored weight."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import skerry.quant as quant
from skerry.core.errors import ModelError, ParameterError
from skerry.quant.formats.outlier_victim import OutlierVictim, VictimStatic, VictimTensor
from skerry.quant.formats.victim_codec import PairCodec
from skerry.quant.linear import QuantizedLinear
from skerry.quant.statistics import LayerStatistics

FLINT = [0, 1, 2, 3, 4, 6, 8, 16]


def scalar_element(v, type_, bias):
    """(is outlier, magnitude, normal code, abfloat code) of one value, by the brief's rules."""
    size, sign = abs(v), int(v < 0)
    normal = list(range(8)) if type_ == "int" else FLINT
    first = 3 << bias
    out = size > (normal[-1] + first) / 2
    if type_ == "int":
        index = min(round(size), 7)  # Python rounds half to even too
        code = (-index if sign else index) & 15
    else:
        index = max(range(8), key=lambda i: (-abs(size - FLINT[i]), FLINT[i]))  # ties up
        code = index | (8 * sign if index else 0)
    if not out:
        return False, normal[index] * (-1 if sign else 1), code, None
    e = math.floor(math.log2(size)) - 1
    base = math.floor(size / 2**e + 0.5)
    if base == 4:
        e, base = e + 1, 2
    e -= bias
    if e > 3:
        e, base = 3, 3
    if (e, base) <= (0, 2):
        e, base = 0, 3
    return True, (base << (e + bias)) * (-1 if sign else 1), None, sign << 3 | e << 1 | (base - 2)


def scalar_pair(a, b, type_, bias, tie):
    """(byte, value, value) of one pair."""
    out_a, value_a, normal_a, ab_a = a[1]
    out_b, value_b, normal_b, ab_b = b[1]
    keeps_a = out_a and (tie == "even" or not out_b or abs(a[0]) >= abs(b[0]))
    if keeps_a:
        return ab_a | 8 << 4, value_a, 0
    if out_b:
        return 8 | ab_b << 4, 0, value_b
    return normal_a | normal_b << 4, value_a, value_b


@pytest.mark.parametrize("tie", ["larger", "even"])
@pytest.mark.parametrize(("type_", "bias"), [("int", 2), ("flint", 3)])
def test_bit_exact_over_all_pairs(type_, bias, tie):
    codec = PairCodec(type=type_, tie=tie)
    assert codec.bias == bias
    grid = [v / 2 for v in range(-52, 53)] + [
        s * v for v in (28, 40, 47, 48, 56, 79, 80, 96, 111, 160, 250) for s in (1, -1)
    ]
    elements = [(v, scalar_element(v, type_, bias)) for v in grid]
    pairs = list(itertools.product(elements, elements))
    y = torch.tensor([[a[0], b[0]] for a, b in pairs])
    expected = [scalar_pair(a, b, type_, bias, tie) for a, b in pairs]
    codes = codec.encode(y)
    assert codes[:, 0].tolist() == [e[0] for e in expected]
    values = torch.tensor([e[1:] for e in expected], dtype=torch.float32)
    assert torch.equal(codec.decode(codes), values)
    assert torch.equal(codec.round(y), values)
    swapped = codec.encode(y.flip(1))[:, 0]
    same = (
        y[:, 0].abs() != y[:, 1].abs()
        if tie == "larger"
        else torch.tensor([not (a[1][0] and b[1][0]) for a, b in pairs])
    )
    assert torch.equal((swapped >> 4 | swapped << 4)[same], codes[same, 0])


def scalar_decode(code, partner, bits, normal, mantissa, bias, identifier):
    """Value of one code beside another, by the brief's rules; codes that no encoder writes are 0."""
    half = 2 ** (bits - 1)
    if code == identifier:
        return 0
    if partner != identifier:
        return normal[code]
    e, m = (code & (half - 1)) >> mantissa, code & (2**mantissa - 1)
    value = (2**mantissa + m) << (e + bias)
    legal = code & (half - 1) and value < 2**15
    return (-value if code >= half else value) if legal else 0


def normal_values(type_, bits=4):
    half = 2 ** (bits - 1)
    if type_ == "flint":
        return [FLINT[c & 7] * (-1 if c >= 8 else 1) for c in range(16)]
    return [c - 2 * half if c >= half else c for c in range(2 * half)]


@pytest.mark.parametrize(("type_", "bias"), [("int", 2), ("flint", 3)])
def test_decoding_is_bit_exact_over_all_bytes(type_, bias):
    codec, normal = PairCodec(type=type_), normal_values(type_)
    byte = torch.arange(256, dtype=torch.uint8)
    expected = [
        [scalar_decode(b & 15, b >> 4, 4, normal, 1, bias, 8), scalar_decode(b >> 4, b & 15, 4, normal, 1, bias, 8)]
        for b in range(256)
    ]
    assert torch.equal(codec.decode(byte[:, None]), torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(("exponent_bits", "mantissa", "bias"), [(None, 3, 4), (2, 5, 2)])
def test_eight_bits_are_bit_exact_over_all_pairs(exponent_bits, mantissa, bias):
    """All 65,536 pairs of codes are decoded by the scalar rules, and what an encoder may write comes back as it was."""
    codec, normal = PairCodec(8, exponent_bits=exponent_bits), normal_values("int", 8)
    assert (codec.mantissa_bits, codec.bias) == (mantissa, bias)
    alone = [scalar_decode(c, 0, 8, normal, mantissa, bias, 128) for c in range(256)]
    beside = [scalar_decode(c, 128, 8, normal, mantissa, bias, 128) for c in range(256)]
    first, second = (t.flatten() for t in torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij"))
    alone, beside = torch.tensor(alone).float(), torch.tensor(beside).float()
    a = torch.where(second == 128, beside[first], alone[first])
    b = torch.where(first == 128, beside[second], alone[second])
    codes = torch.stack((first, second), -1).to(torch.uint8)
    values = torch.stack((a, b), -1)
    assert torch.equal(codec.decode(codes), values)
    written = ((first == 128) & (beside[second] != 0)) | ((second == 128) & (beside[first] != 0))
    written |= (first != 128) & (second != 128)
    assert int(written.sum()) == 255**2 + 2 * int((beside != 0).sum())
    assert torch.equal(codec.encode(values)[written], codes[written])


@pytest.mark.parametrize("exponent_bits", [None, 2])
def test_eight_bits_are_encoded_by_the_nearest_value(exponent_bits):
    """Every level, and what lies just below, on and above the middle of two, against all levels one by one."""
    codec = PairCodec(8, exponent_bits=exponent_bits)
    levels = [float(v) for v in range(128)] + [float(v) for v in codec.outlier_levels]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(levels)]
    tried = levels + [m + d for m in middles for d in (-0.01, 0.01)] + [levels[-1] * 3]
    for sign in (1.0, -1.0):
        y = sign * torch.tensor(tried)
        found = codec.round(torch.stack((y, torch.zeros_like(y)), -1))[:, 0]
        wanted = [sign * min(levels, key=lambda v, t=t: abs(v - t)) for t in tried]
        assert found.tolist() == wanted
        codes = codec.encode(torch.stack((y, torch.zeros_like(y)), -1))
        assert torch.equal(codec.decode(codes)[:, 0], found)
        out = torch.tensor([abs(w) > 127 for w in wanted])
        assert torch.equal(codes[:, 1] == 128, out)


def test_unsigned_pairs_are_bit_exact():
    codec = PairCodec(signed=False)
    levels = list(range(15)) + codec.outlier_levels
    values = torch.tensor(levels, dtype=torch.float32)
    for i, level in enumerate(levels):
        for place in (0, 1):
            pair = torch.zeros(len(levels), 2)
            pair[:, place], pair[:, 1 - place] = level, values
            back = codec.decode(codec.encode(pair))
            outlier = (i >= 15, values >= 16)
            keeps = outlier[0] & ((values < 16) | (level > values) | ((level == values) & (place == 0)))
            loses = outlier[1] & ~torch.as_tensor(keeps)
            assert torch.equal(back[:, place], torch.where(loses, 0.0, float(level)))
            assert torch.equal(back[:, 1 - place], torch.where(torch.as_tensor(keeps), 0.0, values))


def test_abfloat_values_and_golden_codes():
    assert PairCodec().outlier_levels == [12, 16, 24, 32, 48, 64, 96]
    assert PairCodec(type="flint").outlier_levels == [24, 32, 48, 64, 96, 128, 192]
    y = torch.tensor([[9.6, 0], [-20, 0], [26, 0], [40, 0], [-47, 0], [100, 0]])
    assert (PairCodec().encode(y) & 15)[:, 0].tolist() == [0b0001, 0b1011, 0b0011, 0b0101, 0b1101, 0b0111]


def test_golden_vectors():
    y = torch.tensor([1.2, -30, 3.4, -2.6, 50, 18, 7.4, 0.2, 9.4, 9.6])
    assert PairCodec().round(y).tolist() == [0, -32, 3, -3, 48, 0, 7, 0, 0, 12]
    y = torch.tensor([18.0, 50, 50, 18, -12, -13])
    assert PairCodec().round(y).tolist() == [0, 48, 48, 0, 0, -12]
    assert PairCodec(tie="even").round(y).tolist() == [16, 0, 48, 0, -12, 0]


CODECS = [
    PairCodec(),
    PairCodec(type="flint"),
    PairCodec(tie="even"),
    PairCodec(signed=False),
    PairCodec(8),
    PairCodec(8, exponent_bits=2),
]


@pytest.mark.parametrize("codec", CODECS, ids=str)
def test_round_trip_is_idempotent_and_pairs_are_legal(codec):
    y = torch.randn(40, 64, generator=torch.Generator().manual_seed(1)) * codec.normal_max
    codes = codec.encode(y)
    values = codec.decode(codes)
    assert torch.equal(values, codec.round(y))
    assert torch.equal(codec.encode(values), codes)
    outlier, victim = codec.outliers(codes)
    assert outlier.sum() == victim.sum() > 0
    assert not (victim[..., 0::2] & victim[..., 1::2]).any()
    single = torch.stack((codes & 15, codes >> 4), -1).flatten(-2) if codec.bits == 4 else codes
    assert ((single[outlier] & (2 ** (codec.bits - 1) - 1)) != 0).all()
    assert values.abs().max() <= codec.largest
    assert (values[victim] == 0).all()
    kept = ~victim & (values != 0)
    if codec.signed:
        assert (values[kept].sign() == y[kept].sign()).all()
    for mask, beside in ((outlier, True), (~outlier & ~victim, False)):
        exponent, integer = codec.decode_exponent_integer(single[mask], beside)
        assert torch.equal((integer << exponent).float(), values[mask])


def test_eight_bit_ranges():
    assert PairCodec(8, exponent_bits=2).outlier_levels[0] == 132
    assert PairCodec(8, exponent_bits=2).largest == 2016
    assert PairCodec(8).outlier_levels[0] == 144
    assert PairCodec(8).largest == 30720  # below 2^15


@pytest.mark.parametrize("codec", [PairCodec(), PairCodec(type="flint")], ids=str)
def test_all_codes_as_exponent_and_integer(codec):
    codes = torch.arange(16, dtype=torch.uint8)
    for beside, n in ((True, 14), (False, 15)):
        legal = codes[(codes % 8 != 0)] if beside else codes[codes != 8]
        assert len(legal) == n
        exponent, integer = codec.decode_exponent_integer(legal, beside)
        byte = legal | 8 << 4 if beside else legal
        assert torch.equal((integer << exponent).float(), codec.decode(byte[:, None])[:, 0])
        assert integer.abs().max() <= 7


def test_without_outliers_it_is_plain_int4():
    y = torch.rand(30, 20, generator=torch.Generator().manual_seed(0)) * 18.9 - 9.45
    assert torch.equal(PairCodec().round(y), torch.round(y).clamp(-7, 7))


@given(st.lists(st.floats(-96, 96, width=32), min_size=2, max_size=20).filter(lambda v: len(v) % 2 == 0))
def test_error_is_at_most_half_the_gap(values):
    y = torch.tensor(values)
    codec = PairCodec()
    back = codec.round(y)
    _, victim = codec.outliers(codec.encode(y))
    size = y.abs()
    bound = torch.full_like(y, 0.5)
    for low, gap in ((7, 2.5), (12, 2), (16, 4), (32, 8), (64, 16)):
        bound[size >= low] = gap
    assert ((back - y).abs() <= bound + 1e-5)[~victim].all()


@given(
    st.lists(st.floats(-192, 192, width=32), min_size=2, max_size=20).filter(lambda v: len(v) % 2 == 0),
    st.sampled_from(["larger", "even"]),
)
def test_error_of_flint_is_at_most_half_the_gap(values, tie):
    y, codec = torch.tensor(values), PairCodec(type="flint", tie=tie)
    back = codec.round(y)
    _, victim = codec.outliers(codec.encode(y))
    levels = torch.tensor([float(v) for v in FLINT + codec.outlier_levels])
    above = torch.searchsorted(levels, y.abs().contiguous()).clamp(1, len(levels) - 1)
    gap = levels[above] - levels[above - 1]
    assert ((back - y).abs() <= gap / 2 + 1e-5)[~victim].all()


def heavy_tailed(rows=24, width=96, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(rows, width, generator=g) / (torch.rand(rows, width, generator=g) + 0.02)


def error(form, W):
    return float(((form.quantize(W).dequantize() - W) ** 2).sum())


def test_search_is_never_worse_than_its_parts():
    W = heavy_tailed()
    both = error(OutlierVictim(), W)
    for types in (("int",), ("flint",)):
        alone = error(OutlierVictim(types=types), W)
        assert both <= alone
        assert alone <= error(OutlierVictim(types=types, search=(100, 101, 1)), W)


def test_heavy_tails_are_stored_better_than_by_clipped_int4():
    W = heavy_tailed(seed=3)
    top = W.abs().amax(1, keepdim=True)
    clipped = min(
        float(((torch.round(W / (top * r / 7)).clamp(-7, 7) * (top * r / 7) - W) ** 2).sum())
        for r in (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
    )
    assert error(OutlierVictim(), W) < clipped


@pytest.mark.parametrize(("bits", "width"), [(4, 9), (4, 16), (8, 9), (8, 16)])
@pytest.mark.parametrize("granularity", ["row", "tensor"])
def test_stored_weight_survives_and_its_size_is_said(bits, width, granularity):
    W = heavy_tailed(5, width)
    form = OutlierVictim(bits=bits, granularity=granularity)
    stored = form.quantize(W)
    assert stored.shape == (5, width)
    assert stored.packed.shape == (5, (width + 1) // 2 if bits == 4 else width + width % 2)
    tensors = stored.tensors()
    assert stored.nbytes == sum(t.numel() * t.element_size() for t in tensors.values())
    assert form.bits_per_weight((5, width)) == pytest.approx(stored.nbytes * 8 / (5 * width))
    back = VictimTensor.from_tensors(stored.meta(), tensors)
    assert torch.equal(back.dequantize(), stored.dequantize())
    assert torch.equal(back.integers().float() * back.scale, back.dequantize())
    assert stored.stats(W)["outliers"] == stored.stats(W)["victims"]


def test_a_dead_row_stays_zero():
    W = heavy_tailed(3, 10)
    W[1] = 0.0
    assert not OutlierVictim().quantize(W).dequantize()[1].any()


def test_static_inputs_use_the_first_tokens():
    x = heavy_tailed(32, 15)
    quantizer = VictimStatic(bits=4)
    with pytest.raises(ModelError, match="calibration"):
        quantizer.fake(x)
    ready = quantizer.calibrated(LayerStatistics.of(x, {"sample"}))
    assert ((ready.fake(x) - x) ** 2).sum() < (
        (torch.round(x / (x.abs().max() / 7)) * (x.abs().max() / 7) - x) ** 2
    ).sum()
    positive = VictimStatic(types=("int",), unsigned=True).calibrated(LayerStatistics.of(x.abs(), {"sample"}))
    assert not positive.codec.signed
    assert (positive.fake(x.abs()) >= 0).all()


def test_saturated_entries_are_told():
    W = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    W[0, 5] = 1e4
    stored = OutlierVictim(search=(100, 101, 1), types=("int",)).quantize(W)
    told = stored.stats(W)
    assert told["saturated"] == pytest.approx(float((W.abs() > 96 * stored.scale).float().mean()))
    assert told["mse"] == pytest.approx(float(((stored.dequantize() - W) ** 2).mean()), rel=1e-5)


@pytest.mark.parametrize("family", ["opt", "gpt2", "bert"])
def test_the_first_blocks_in_eight_bits(family, tiny, inputs):
    found = quant.quantize(
        tiny(family), "olive", "w4a4", inputs(family), first_n_8bit=1, search=(90, 111, 10), types=("int",)
    )
    layers = {n: m for n, m in found.named_modules() if isinstance(m, QuantizedLinear)}
    assert len({n.split(".0.")[0] for n in layers if ".0." in n}) == 1
    for name, layer in layers.items():
        wide = ".0." in name
        assert layer.solved.weight.codec.bits == (8 if wide else 4)
        assert layer.activation.bits == (8 if wide else 4)
    with pytest.raises(ParameterError, match="first_n_8bit"):
        quant.make_recipe("olive", "w4a4", first_n_8bit=-1)


@pytest.mark.parametrize(
    "settings",
    [
        {"bits": 5},
        {"types": ("flint",), "bits": 8},
        {"tie": "odd"},
        {"granularity": "group"},
        {"search": (0, 5, 1)},
        {"scale_dtype": "x"},
    ],
)
def test_settings_out_of_range(settings):
    with pytest.raises(ParameterError):
        OutlierVictim(**settings)
