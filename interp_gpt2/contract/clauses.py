"""The promises, one by one. Each has a sentence that says what is promised and a check that tries to break it."""

from collections.abc import Callable
from dataclasses import dataclass

from interp_gpt2.contract import editing, reading, surroundings
from interp_gpt2.contract.by_hand import without
from interp_gpt2.contract.finding import Finding


def everywhere(point: str) -> bool:
    return True


def parts_of_the_stream(point: str) -> bool:
    return without({}, point) is not None


def attention_weights(point: str) -> bool:
    return point.endswith((".attn_scores", ".pattern"))


@dataclass(frozen=True)
class Clause:
    """A promise, and the check of it: at each hook point that `at` accepts, or, with None, once for a model.

    `check` takes a Subject, and the hook point unless `at` is None; it returns a Finding.
    """

    name: str
    promise: str
    check: Callable[..., Finding]
    at: Callable[[str], bool] | None = everywhere
    slow: bool = False  # a quick check holds only the first model to it


CLAUSES = (
    Clause(
        "values",
        "What is recorded is what GPT-2's definition, written out in float64, makes of the same weights.",
        reading.values,
    ),
    Clause("float32", "In float32 what is recorded is within 1e-5 of the definition in float64.", reading.float32),
    Clause("bfloat16", f"In bfloat16 it is within {reading.BFLOAT16:.2g} of the largest activation there.", reading.bfloat16),
    Clause("float16", f"In float16 it is within {reading.FLOAT16:.2g} of the largest activation there.", reading.float16),
    Clause(
        "identities",
        "Embeddings and all parts sum to the stream, heads' results and b_O to attn_out; patterns sum to 1 and are causal.",
        reading.identities,
        None,
    ),
    Clause("watching", "Recording changes no logit, and a value is the same whatever else is recorded.", reading.watching),
    Clause(
        "records are yours",
        "Writing into a recorded tensor reaches no weight and no later pass.",
        reading.records_are_yours,
    ),
    Clause("identity edit", "An edit that returns its value changes no logit.", editing.identity_edit),
    Clause(
        "edited, then recorded",
        "An edit is called once, with what a plain pass records; what is recorded is what it returned.",
        editing.edited_then_recorded,
    ),
    Clause(
        "causal",
        "To the bit, an edit changes nothing upstream, at earlier positions or in other sequences.",
        editing.causal,
    ),
    Clause("effective", "An edit changes everything downstream that by definition it changes.", editing.effective),
    Clause("by hand", "An edited pass is the definition with the same edit, at every hook point.", editing.as_by_hand),
    Clause("in place", "A value changed in place and returned does what a new value does, to the bit.", editing.in_place),
    Clause(
        "contained",
        "An edit in place reaches no weight, nothing recorded earlier, and nothing upstream in its own pass.",
        editing.contained,
    ),
    Clause(
        "zeroing removes",
        "A part of the stream set to zero is the model without the weights that write it (b_O stays without z or result).",
        editing.zeroing_removes,
        parts_of_the_stream,
    ),
    Clause("gradients", "The derivative by an activation is what editing it measures, in float64.", reading.gradients),
    Clause("grad mode", "Recorded and edited passes have the same values with gradients and without.", reading.grad_mode),
    Clause(
        "no future",
        "No edit of scores or patterns lets a position read later tokens; or it is refused.",
        editing.no_future,
        attention_weights,
    ),
    Clause("one call", "An edit lasts for one call; afterwards everything is as before, to the bit.", editing.one_call),
    Clause(
        "exceptions",
        "After an exception inside an edit, model and later results are as before, to the bit.",
        editing.exceptions,
    ),
    Clause("unknown names", "A misspelt hook point is an error, recorded or edited.", reading.unknown_names),
    Clause("refuses None", "An edit that returns None is an error.", surroundings.refuses_none),
    Clause("refuses another shape", "An edit that returns another shape is an error.", surroundings.refuses_shape),
    Clause("refuses another dtype", "An edit that returns another dtype is an error.", surroundings.refuses_dtype),
    Clause("refuses another device", "An edit that returns another device's tensor is an error.", surroundings.refuses_device),
    Clause("tokens", "Tokens that the model cannot read are an error.", surroundings.tokens, None),
    Clause("compiled", "torch.compile, in one graph, gives the same values, recorded or not.", surroundings.compiled, None, True),
    Clause(
        "compiled edits",
        "Edits made after compilation take effect at every hook point.",
        surroundings.compiled_edits,
        None,
        slow=True,
    ),
    Clause(
        "compilations",
        "Recording off, on, off, on compiles twice in each grad mode.",
        surroundings.compilations,
        None,
        slow=True,
    ),
    Clause("threads reading", "Four threads at once record what one alone records.", surroundings.threads_reading, None),
    Clause("threads editing", "Four threads at once, each with its own edit, see only that.", surroundings.threads_editing, None),
)
