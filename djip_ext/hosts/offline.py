"""Keep a host's own code from fetching anything."""

import socket
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from djip_ext.errors import DJIPError


@contextmanager
def no_downloads() -> Iterator[None]:
    """Refuse what would be fetched inside, with the address where it is known.

    This covers urllib, through which torchvision and ``torch.hub`` fetch, and every library that
    looks up a name, such as requests; not a program that the host starts.

    Raises:
        DJIPError: something was about to be fetched.
    """

    def refuse_url(self: Any, request: Any, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse(getattr(request, "full_url", request))

    def refuse_download(url: str, *args: Any, **kwargs: Any) -> NoReturn:
        _refuse(url)

    def refuse_host(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host in (None, "", "localhost", "127.0.0.1", "::1"):
            return look_up(host, *args, **kwargs)
        _refuse(host)

    import torchvision.datasets.utils as datasets

    look_up = socket.getaddrinfo
    refusals: list[tuple[Any, str, Any]] = [
        (urllib.request.OpenerDirector, "open", refuse_url),
        (datasets, "download_url", refuse_download),  # it makes a folder first
        (socket, "getaddrinfo", refuse_host),
    ]
    originals = [getattr(owner, name) for owner, name, _ in refusals]
    for owner, name, refusal in refusals:
        setattr(owner, name, refusal)
    try:
        yield
    finally:
        for (owner, name, _), original in zip(refusals, originals, strict=True):
            setattr(owner, name, original)


def _refuse(what: object) -> NoReturn:
    raise DJIPError(
        f"the host would fetch {what}, but djip fit downloads nothing; "
        "let a script of the host fetch it first, or put it where the host keeps it"
    )
