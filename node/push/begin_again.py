"""What a client is told whose upload has lost its store, so that it begins that blob again by itself. Pure.

No status makes them all do that; `docs/clients.md` has what each of them does, as tried.
"""

from uuid import UUID

from node.errors import BLOB_UPLOAD_UNKNOWN, TOOMANYREQUESTS, UNAVAILABLE, RegistryError

_FINAL_5XX = ("skopeo/", "containers/", "libpod/", "buildah/", "cri-o/")
"""User-Agents of the containers/image family: before containers/common issue 2299 it took every 5xx for final, but not a 404."""

_REPEATS = ("containerd/",)
"""Those that never begin a blob again, but repeat a whole PUT after 429."""

_RETRY_AFTER = 1


def begin_again(user_agent: str, upload: UUID, location: str, *, stays: bool = False) -> RegistryError:
    """Return the answer to a request whose upload's store has died. `stays`: the upload is there, empty, for the same PUT again.

    503 is the plain truth, and what docker, crane, BuildKit and regctl go on after (429 is final for docker, 404 for crane, any
    4xx for BuildKit). To the containers/image family the same is said as 404: the upload is unknown from now on, just as true.
    """
    detail = {"upload": str(upload), "location": location, "reason": "the store failed: begin this blob again"}
    if stays and user_agent.lower().startswith(_REPEATS):
        return RegistryError(TOOMANYREQUESTS, detail, retry_after=_RETRY_AFTER)
    if user_agent.lower().startswith(_FINAL_5XX) and not stays:
        return RegistryError(BLOB_UPLOAD_UNKNOWN, detail)
    return RegistryError(UNAVAILABLE, detail, retry_after=_RETRY_AFTER)
