"""The differences that are allowed, each under one name with one reason."""

from __future__ import annotations

from tests.integration.compare.scenario import Difference, Part

SERVED = Difference(
    name="served",
    parts=(Part.STATUS, Part.TEXT, Part.RESPONSES),
    reason="Triton refuses ModelInfer for a decoupled model. The sidecar answers with its responses joined into one; "
    "the scenarios 'as its stream answers' and 'as one piece' compare that answer with what Triton streams.",
)
SERVED_TO_A_PROGRAM = Difference(name="served to a program", parts=(Part.SEEN,), reason="As `served`.")
REFUSED_EARLIER = Difference(
    name="refused earlier",
    parts=(Part.TEXT,),
    reason="The sidecar has to know how long and how wide a request is before it gives it a slot, so it refuses by "
    "itself what the model would refuse: as the model does (status, model name, final flag), in its own words, "
    "which begin with the request's id, as Triton's own do, and name the caller's tensor.",
)
CUT_IN_SILENCE = Difference(
    name="refused where the engine cuts",
    parts=(Part.RESPONSES,),
    reason="An engine generates fewer tokens than are asked for where prompt and output together are beyond its "
    "length, and does not say so. The sidecar refuses such a request by itself, with both numbers.",
)
REFUSED_BEFORE_THE_MODEL = Difference(
    name="refused before the model",
    parts=(Part.TEXT, Part.MODEL, Part.FLAGS),
    reason="Triton counts the inputs and does not look which they are, so that a request with optional inputs and "
    "without a required one reaches the model. The sidecar answers as Triton does where the count is too small. The "
    "same for a string that ends before its length.",
)
SAID = Difference(
    name="said where Triton is silent",
    parts=(Part.RESPONSES,),
    reason="An ensemble that lacks an input of its first step ends without any response in Triton 2.51. The sidecar "
    "says which input is missing.",
)
SURPLUS = Difference(
    name="surplus contents",
    parts=(Part.RESPONSES,),
    reason="Triton ignores raw contents that no input stands for. The sidecar refuses them: which bytes belong to "
    "which input cannot be known.",
)
UNREADABLE = Difference(
    name="unreadable message",
    parts=(Part.STATUS, Part.TEXT),
    reason="Triton takes bytes that are no request for the end of the requests, and ends the stream with OK. The "
    "sidecar ends it with the status that Triton gives the same bytes in a unary call.",
)
PRIORITY = Difference(
    name="no priority levels",
    parts=(Part.RESPONSES,),
    reason="Triton takes a priority and ignores it, for no model here has priority levels. The sidecar refuses what "
    "it would ignore, and names the lanes.",
)
PRIORITY_TO_A_PROGRAM = Difference(
    name="no priority levels, to a program", parts=(Part.SEEN,), reason="As `no priority levels`."
)
WATCH = Difference(
    name="health is watched",
    parts=(Part.STATUS, Part.TEXT),
    reason="Triton has no Watch in its health service; the sidecar has. The call ends by its deadline here.",
)
NO_METHOD = Difference(
    name="no such method", parts=(Part.TEXT,), reason="The text is that of the gRPC library of either server."
)
OUTLIVED = Difference(
    name="the stream outlives the engine",
    parts=(Part.STATUS, Part.TEXT, Part.RESPONSES),
    reason="Requests on one stream may go to different engines, so a request that no engine can take is answered by "
    "an error of its own, and the stream goes on.",
)
OUTLIVED_BY_ONE = Difference(
    name="the stream outlives the engine for one model", parts=(Part.RESPONSES,), reason=OUTLIVED.reason
)
ANSWERS_FOR_ITSELF = Difference(
    name="answers for itself",
    parts=(Part.STATUS, Part.TEXT, Part.ANSWER),
    reason="Asked whether it is ready, the sidecar says no when no engine is up; nobody listens at the address of a "
    "Triton that is gone.",
)
STOP_SERVED = Difference(
    name="stop by ModelInfer",
    parts=(Part.STATUS, Part.TEXT, Part.RESPONSES),
    reason="As `served`: a stop may come by ModelInfer too.",
)
KEYLESS = Difference(
    name="no key on a stream",
    parts=(Part.STATUS, Part.TEXT, Part.RESPONSES),
    reason="Triton ends the stream. The sidecar answers each request, under the same text.",
    to_mend=True,
)
KEYLESS_BY_ONE = Difference(
    name="no key on a stream of both kinds",
    parts=(Part.RESPONSES,),
    reason="As `no key on a stream`, and the scheduled request is told of a broken connection.",
    to_mend=True,
)
