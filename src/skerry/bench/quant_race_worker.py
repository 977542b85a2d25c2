"""Quantize one model folder by one library, under that library's own interpreter; one line of JSON says what it cost.

Runs as a script and imports nothing of ours unless the library is ours, so that it works in environments made for the
peers. The clock starts when model and rows are in memory and stops when the quantized model is; saving is timed apart.
Then the model is judged where it is: next-token loss, and what the layers that write to the residual stream give
beside what they give in the float model, in the quantized model's own flow, input rounding included. (Other layers
may be rescaled by a transform that keeps the function, so their outputs do not compare.)
"""

import json
import math
import sys
import time
import warnings
from pathlib import Path

WRITERS = ("o_proj", "out_proj", "down_proj", "fc2")


def main(order):
    warnings.simplefilter("ignore")
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(order["threads"])
    torch.manual_seed(0)
    rows = load_file(order["rows"])
    model = AutoModelForCausalLM.from_pretrained(order["model"], local_files_only=True, dtype=torch.float32).eval()
    names = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n.endswith(WRITERS)]
    exact = outputs(model, names, rows["held"][:8])
    work = LIBRARIES[order["library"]]
    work.prepare(order)
    cpu, wall = time.process_time(), time.perf_counter()
    found = work.quantize(model, rows["calibration"], order)
    told = {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}
    told["loss"] = loss(found, rows["held"])
    told["error"] = error(exact, outputs(found, names, rows["held"][:8]))
    cpu = time.process_time()
    work.save(found, order)
    told["save"] = time.process_time() - cpu
    told["bytes"] = sum(p.stat().st_size for p in Path(order["out"]).rglob("*") if p.is_file())
    return told


def loss(model, tokens):
    import torch

    total = 0.0
    with torch.no_grad():
        for part in tokens.split(16):
            logits = model(input_ids=part[:, :-1], use_cache=False).logits.float()
            total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten())) * len(part)
    return total / len(tokens)


def outputs(model, names, tokens):
    """Return what every named layer gives (layer to float32 tensor)."""
    import torch

    found, handles = {}, []
    for name in names:

        def keep(module, arguments, output, name=name):
            found[name] = output.detach().float()

        handles.append(model.get_submodule(name).register_forward_hook(keep))
    with torch.no_grad():
        model(input_ids=tokens[:, :-1], use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def error(exact, found):
    """Return the geometric mean over the layers of the relative squared error."""
    logs = []
    for name, y in exact.items():
        y, z = y.double(), found[name].double()
        logs.append(math.log(max(float(((y - z) ** 2).sum() / (y**2).sum()), 1e-30)))
    return math.exp(sum(logs) / len(logs))


class Skerry:
    @staticmethod
    def prepare(order):
        import skerry.bench.quant_race
        import skerry.quant.engine
        import skerry.quant.solvers  # noqa: F401

    @staticmethod
    def quantize(model, rows, order):
        from skerry.bench.quant_race import REPORTED, our_recipe
        from skerry.quant.engine import quantize_model

        recipe = our_recipe(order["scheme"], order["group"])
        seen = recipe.looks_at_inputs or order["library"] == REPORTED
        return quantize_model(model, recipe, calibration=list(rows.split(8)) if seen else None, inplace=True)[0]

    @staticmethod
    def save(model, order):
        from skerry.quant.checkpoint import save

        save(model, order["out"])


class LLMCompressor:
    @staticmethod
    def prepare(order):
        import llmcompressor
        import llmcompressor.modifiers.quantization  # noqa: F401
        from loguru import logger

        logger.remove()

    @staticmethod
    def quantize(model, rows, order):
        import torch
        from llmcompressor import oneshot

        data = [{"input_ids": r[None], "attention_mask": torch.ones_like(r[None])} for r in rows]
        loader = torch.utils.data.DataLoader(data, batch_size=None)
        oneshot(
            model=model,
            dataset=loader,
            recipe=LLMCompressor.recipe(order),
            processor=tokenizer(),
            num_calibration_samples=len(rows),
            max_seq_length=rows.shape[1],
        )
        return model

    @staticmethod
    def recipe(order):
        from llmcompressor.modifiers.quantization import GPTQModifier, QuantizationModifier

        scheme, ignore = order["scheme"], ["lm_head"]
        four = {
            "group_0": {
                "targets": ["Linear"],
                "weights": {
                    "num_bits": 4,
                    "type": "int",
                    "symmetric": True,
                    "strategy": "group",
                    "group_size": order["group"],
                },
            }
        }
        if scheme == "W4A16 RTN":
            return [QuantizationModifier(config_groups=four, ignore=ignore)]
        if scheme == "W4A16 GPTQ":
            return [GPTQModifier(config_groups=four, ignore=ignore)]
        if scheme == "FP8":
            return [QuantizationModifier(targets="Linear", scheme="FP8_DYNAMIC", ignore=ignore)]
        try:
            from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
        except ImportError:
            from llmcompressor.modifiers.smoothquant import SmoothQuantModifier
        pairs = {
            "opt": [
                [["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*self_attn_layer_norm"],
                [["re:.*fc1"], "re:.*final_layer_norm"],
            ],
            "llama": [
                [["re:.*q_proj", "re:.*k_proj", "re:.*v_proj"], "re:.*input_layernorm"],
                [["re:.*gate_proj", "re:.*up_proj"], "re:.*post_attention_layernorm"],
            ],
        }
        return [
            SmoothQuantModifier(smoothing_strength=0.5, mappings=pairs[order["family"]]),
            GPTQModifier(targets="Linear", scheme="W8A8", ignore=ignore),
        ]

    @staticmethod
    def save(model, order):
        model.save_pretrained(order["out"], save_compressed=True)


class TorchAO:
    @staticmethod
    def prepare(order):
        import torchao.quantization  # noqa: F401

    @staticmethod
    def quantize(model, rows, order):
        import torch
        import torchao.quantization as q

        configs = {
            "W4A16 RTN": lambda: q.IntxWeightOnlyConfig(
                weight_dtype=torch.int4, granularity=q.PerGroup(order["group"])
            ),
            "W8A8": lambda: q.Int8DynamicActivationInt8WeightConfig(),
            "FP8": lambda: q.Float8WeightOnlyConfig(),
        }
        keep = lambda module, name: isinstance(module, torch.nn.Linear) and "head" not in name  # noqa: E731
        q.quantize_(model, configs[order["scheme"]](), filter_fn=keep)
        return model

    @staticmethod
    def save(model, order):
        import torch

        Path(order["out"]).mkdir(parents=True)
        torch.save(model.state_dict(), Path(order["out"]) / "state.pt")  # its subclasses have no plainer form


class Quanto:
    @staticmethod
    def prepare(order):
        import optimum.quanto  # noqa: F401

    @staticmethod
    def quantize(model, rows, order):
        import optimum.quanto as q

        kinds = {"W4A16 RTN": (q.qint4, None), "W8A16 RTN": (q.qint8, None), "FP8": (q.qfloat8, None)}
        weights, activations = kinds[order["scheme"]]
        q.quantize(model, weights=weights, activations=activations, exclude="*head*")
        q.freeze(model)
        return model

    @staticmethod
    def save(model, order):
        from safetensors.torch import save_file

        Path(order["out"]).mkdir(parents=True)
        state = {k: v.contiguous() for k, v in model.state_dict().items() if hasattr(v, "contiguous")}
        save_file(state, Path(order["out"]) / "model.safetensors")


class Transformers:
    """No quantizer: loads a finished folder and says what it loses, as a client would."""

    @staticmethod
    def load(order):
        import torch
        from safetensors.torch import load_file
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(order["model"], local_files_only=True, dtype=torch.float32).eval()
        return {"loss": loss(model, load_file(order["rows"])["held"])}


def tokenizer():
    """Return a tokenizer that llm-compressor asks for and, with rows of ids, never uses."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")))


LIBRARIES = {
    "skerry": Skerry,
    "skerry with report": Skerry,
    "llm-compressor": LLMCompressor,
    "torchao": TorchAO,
    "optimum-quanto": Quanto,
}

if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    try:
        result = Transformers.load(asked) if asked["library"] == "transformers" else main(asked)
    except Exception as problem:
        result = {"problem": f"{type(problem).__name__}: {str(problem).strip()[:200]}"}
    print("RESULT" + json.dumps(result))
