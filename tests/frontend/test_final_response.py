"""The response that ends a request where no engine's own does."""

from __future__ import annotations

from sidecar.frontend.caller_request import CallerRequest, parse
from sidecar.frontend.final_response import OF_IDS, final_answer, wants_only
from sidecar.triton import wire


def asking(*outputs: str) -> CallerRequest:
    request = wire.InferRequest(model_name="chat", id="r")
    for name in outputs:
        request.outputs.add(name=name)
    return parse(request)


def test_ids_come_with_their_count_under_the_callers_id_and_the_name_of_the_model_that_served() -> None:
    answer = final_answer(asking(), "tensorrt_llm", "3", (7, 8)).infer_response
    assert (answer.id, answer.model_name, answer.model_version) == ("r", "tensorrt_llm", "3")
    assert wire.is_final(answer)
    assert (wire.output_values(answer, "output_ids"), wire.output_values(answer, "sequence_length")) == ((7, 8), (2,))


def test_a_text_comes_alone_also_an_empty_one() -> None:
    for text in ("", "two words"):
        answer = final_answer(asking(), "ensemble", "", text).infer_response
        assert [each.name for each in answer.outputs] == ["text_output"]
        assert wire.output_values(answer, "text_output") == (text.encode(),)


def test_only_the_outputs_that_the_caller_names_are_given() -> None:
    answer = final_answer(asking("output_ids"), "tensorrt_llm", "", (7,)).infer_response
    assert [each.name for each in answer.outputs] == ["output_ids"]


def test_a_caller_who_names_no_output_takes_what_comes() -> None:
    assert wants_only(asking(), OF_IDS)
    assert wants_only(asking("output_ids"), OF_IDS)
    assert not wants_only(asking("output_ids", "cum_log_probs"), OF_IDS)
