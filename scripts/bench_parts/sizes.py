"""How much is measured: everything takes about 25 minutes, `--quick` a few, `--tiny` seconds (to see that the benchmark works)."""

from attrs import frozen

KIB, MIB = 1 << 10, 1 << 20


def words(size: int) -> str:
    """Return a number of bytes as people write it."""
    return f"{size // MIB} MiB" if size % MIB == 0 else f"{size // KIB} KiB"


@frozen
class Sizes:
    """Rounds, seconds, counts and bytes of every question."""

    rounds: int = 3
    seconds: float = 4.0
    clients: tuple[int, ...] = (1, 4, 16, 64)
    images: int = 8
    layer: int = 4 * MIB
    """The largest layer of an image that is pulled."""
    push_layer: int = 2 * MIB
    """Likewise of those that are pushed."""
    pushes: int = 4
    """Images per round and client that are pushed."""
    pushers: tuple[int, ...] = (1, 4)
    far_pulls: int = 12
    """Whole pulls per round with a network between registry and store; a quarter as many pushes."""
    blob: int = 256 * MIB
    copies: tuple[tuple[int, int], ...] = ((2000, 16 * KIB), (1000, 256 * KIB), (32, 16 * MIB), (1, 1024 * MIB))
    """What is copied from store to store: sets, each of so many blobs of so many bytes."""
    tls: bool = False
    """Whether it is copied over TLS."""
    far: bool = False
    """Whether the store that is copied from is an ocean away."""
    scales: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    looks: int = 200
    """Requests of each kind at each scale, and from across the ocean a tenth of them."""


FULL = Sizes()
QUICK = Sizes(
    rounds=2, seconds=2.0, clients=(1, 16), images=4, pushes=2, pushers=(1, 4), far_pulls=5, blob=96 * MIB,
    copies=((500, 16 * KIB), (200, 256 * KIB), (16, 16 * MIB), (1, 384 * MIB)), scales=(10_000, 100_000), looks=50,
)  # fmt: skip
TINY = Sizes(
    rounds=1, seconds=0.3, clients=(2,), images=1, layer=100_000, push_layer=50_000, pushes=1, pushers=(1,), far_pulls=1,
    blob=6 * MIB, copies=((3, 16 * KIB), (1, 16 * MIB), (1, 32 * MIB)), scales=(1_000,), looks=3,
)  # fmt: skip
