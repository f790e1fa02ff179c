"""The two tables of RFC 7541: header fields that have a fixed index, and the Huffman code."""

from __future__ import annotations

from typing import Final

# Appendix A: the fields with the indices from 1 on.
STATIC_FIELDS: Final[list[tuple[bytes, bytes]]] = [
    (b":authority", b""),
    (b":method", b"GET"),
    (b":method", b"POST"),
    (b":path", b"/"),
    (b":path", b"/index.html"),
    (b":scheme", b"http"),
    (b":scheme", b"https"),
    *((b":status", status) for status in b"200 204 206 304 400 404 500".split()),
    (b"accept-charset", b""),
    (b"accept-encoding", b"gzip, deflate"),
    *(
        (name, b"")
        for name in (
            b"accept-language accept-ranges accept access-control-allow-origin age allow"
            b" authorization cache-control content-disposition content-encoding content-language"
            b" content-length content-location content-range content-type cookie date etag expect"
            b" expires from host if-match if-modified-since if-none-match if-range"
            b" if-unmodified-since last-modified link location max-forwards proxy-authenticate"
            b" proxy-authorization range referer refresh retry-after server set-cookie"
            b" strict-transport-security transfer-encoding user-agent vary via www-authenticate"
        ).split()
    ),
]

# Appendix B: the symbols by the number of bits of their code. The code is canonical: among the
# symbols of one length, and from one length to the next, the codes count up. So the lengths alone
# define it. The end-of-string symbol (30 bits, all ones) must not occur, and is left out.
_SYMBOLS: Final[dict[int, bytes]] = {
    5: b"012aceiost",
    6: b" %-./3456789=A_bdfghlmnpru",
    7: b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",
    8: b"&*,;XZ",
    10: b'!"()?',
    11: b"'+|",
    12: b"#>",
    13: b"\x00$@[]~",
    14: b"^}",
    15: b"<`{",
    19: b"\\\xc3\xd0",
    20: b"\x80\x82\x83\xa2\xb8\xc2\xe0\xe2",
    21: b"\x99\xa1\xa7\xac\xb0\xb1\xb3\xd1\xd8\xd9\xe3\xe5\xe6",
    22: bytes.fromhex("8184858688929a9ca0a3a4a9aaadb2b5b9babbbdbec4c6e4e8e9"),
    23: bytes.fromhex("0187898a8b8c8d8f93959697989b9d9ea5a6a8aeafb4b6b7bcbfc5e7ef"),
    24: b"\t\x8e\x90\x91\x94\x9f\xab\xce\xd7\xe1\xec\xed",
    25: b"\xc7\xcf\xea\xeb",
    26: bytes.fromhex("c0c1c8c9cacdd2d5dadbeef0f2f3ff"),
    27: bytes.fromhex("cbccd3d4d6dddedff1f4f5f6f7f8fafbfcfdfe"),
    28: bytes.fromhex("02030405060708 0b0c0e0f1011121314151718191a1b1c1d1e1f7fdcf9"),
    30: b"\n\r\x16",
}

# An entry of the decoding table has this bit if its four bits complete a symbol. The eight bits
# below HAS_SYMBOL are the symbol, and the bits from STATE_SHIFT on are the next state.
HAS_SYMBOL: Final = 0x100
MAY_END: Final = 0x200
STATE_SHIFT: Final = 10
# Bits that are no code: the end-of-string symbol.
FAILED: Final = -1


def decoding_table() -> list[int]:
    """The table that decodes four bits at a time.

    Entry `16 * state + bits` has the state after these bits, in the bits from STATE_SHIFT on; the
    symbol that they complete, if HAS_SYMBOL is set; and MAY_END if the string may end there. A
    string may end within a code if the code's bits so far are all ones and fewer than eight (RFC
    7541 section 5.2). No code is shorter than five bits, so four bits complete at most one symbol.
    The first state is 0.
    """
    # The nodes of the code's tree: their two children, negative for a symbol; None where only the
    # end-of-string symbol would be.
    tree: list[list[int | None]] = [[None, None]]
    padding = {0}
    code = bits = 0
    for length, symbols in _SYMBOLS.items():
        code <<= length - bits
        bits = length
        for symbol in symbols:
            _add(tree, code, bits, symbol)
            code += 1
    node: int | None = 0
    for _ in range(7):
        node = tree[node or 0][1]
        assert node is not None
        padding.add(node)
    return [_walk(tree, start, bits, padding) for start in range(len(tree)) for bits in range(16)]


def _add(tree: list[list[int | None]], code: int, bits: int, symbol: int) -> None:
    node = 0
    for shift in range(bits - 1, 0, -1):
        bit = code >> shift & 1
        child = tree[node][bit]
        if child is None:
            child = tree[node][bit] = len(tree)
            tree.append([None, None])
        node = child
    tree[node][code & 1] = -1 - symbol


def _walk(tree: list[list[int | None]], node: int, bits: int, padding: set[int]) -> int:
    entry = 0
    for shift in (3, 2, 1, 0):
        child = tree[node][bits >> shift & 1]
        if child is None:
            return FAILED
        if child < 0:
            entry = HAS_SYMBOL | (-1 - child)
            child = 0
        node = child
    return entry | node << STATE_SHIFT | (MAY_END if node in padding else 0)
