"""Eight pixels at once: what `warp` needs and numba has no words for, in those of its compiler.

They are vectors of LLVM, which every processor has in some width. What is done to floats is what stands here, one
rounding after the other: the compiler joins no multiplication with an addition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

LANES = 8
WORD, PAIR = 32, 64  # bits, which hold several channels of a pixel, or of two


def slot(lane: int) -> int:
    """Where the pair of a lane lies among those of eight: 0, 1, 4, 5, 2, 3, 6, 7.

    The lower halves of two vectors of four pairs then come in the order of the lanes, in one instruction, as the upper
    ones do.
    """
    return lane & 1 | (lane & 2) << 1 | (lane & 4) >> 1


def word_at() -> Callable[[Any, Any], Any]:
    """A compiled function: the 64 bits that begin with an element of an array, whether or not they are aligned."""
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def word_at(typing: Any, elements: Any, place: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            vectors = _Vectors(context, builder, signature, given)
            return builder.load(vectors.pointer(0, given[1], vectors.ir.IntType(PAIR)), align=1)

        return types.uint64(elements, types.uint64), code

    return word_at


def blended(bits: int, channels: int, count: int, apart: int, graded: bool) -> Callable[..., None]:
    """A compiled function that mixes the four neighbours of each of eight pixels, and writes `count` channels of them.

    `bits` of a value: 8 of grey levels, 16 of HU; `channels` of a pixel; `apart`: bits from a channel to that of the
    right neighbour in a pair. `graded`: gain and bias follow, which HU have not.

    It takes `near` uint64 and `parts` float32 [...], where the upper pairs, and the parts that right neighbours have,
    begin at `at`, and the lower pairs, and the parts that lower neighbours have, `below` further; `image` and the
    element `place` of it where the first pixel goes; gain and bias; and air.
    """
    from numba import types
    from numba.extending import intrinsic

    def above_air(v: Any, halves: Sequence[Any], bit: int, air: Any) -> Any:
        """The values above air that begin at a bit of pairs, as floats."""
        build, found = v.builder, halves[bit // WORD]
        if bit % WORD:
            found = build.lshr(found, v.whole(bit % WORD))
        if bits == 8:
            return build.sitofp(build.and_(found, v.whole(255)), v.reals)
        signed = build.sext(build.trunc(found, v.vector(v.ir.IntType(16), LANES)), v.numbers)
        return build.sitofp(build.sub(signed, air), v.reals)

    def level(v: Any, mixed: Any, gain: Any, bias: Any, air: Any) -> Any:
        """The lowest bits of a word hold the value, and the others nothing."""
        build = v.builder
        if bits == 16:
            above = build.fptosi(v.rounded(mixed), v.numbers)
            return build.and_(build.add(above, air), v.whole(0xFFFF))
        if graded:
            mixed = v.between(0.0, build.fadd(build.fmul(v.rounded(mixed), gain), bias), 255.0)
        return build.fptosi(v.rounded(mixed), v.numbers)  # a mean of grey levels is one

    def put(v: Any, words: Any, place: Any) -> None:
        build = v.builder
        if count == channels:  # nothing lies between
            apiece = WORD // bits
            order = [lane * apiece + channel for lane in range(LANES) for channel in range(count)]
            values = build.bitcast(words, v.vector(v.ir.IntType(bits), LANES * apiece))
            chosen = v.shuffled(values, order)
            build.store(chosen, v.pointer(4, place, chosen.type), align=bits // 8)
            return
        pixel = v.ir.IntType(bits * count)
        for lane in range(LANES):
            own = build.extract_element(words, v.ir.Constant(v.number, lane))
            own = build.trunc(own, pixel) if bits * count < WORD else own
            to = build.add(place, v.ir.Constant(place.type, lane * channels))
            build.store(own, v.pointer(4, to, pixel), align=bits // 8)

    @intrinsic
    def run(
        typing: Any, near: Any, parts: Any, at: Any, below: Any, image: Any, place: Any, levels: Any, air: Any
    ) -> Any:
        def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            v = _Vectors(context, builder, signature, given)
            further = builder.add(given[2], given[3])
            gain, bias = (v.in_all(builder.extract_value(given[6], which)) for which in (0, 1))
            air = v.in_all(given[7])

            def halves(index: Any) -> list[Any]:
                found = builder.load(v.pointer(0, index, v.vector(v.number, 2 * LANES)), align=8)
                return [v.shuffled(found, [2 * slot(lane) + half for lane in range(LANES)]) for half in (0, 1)]

            upper, lower = halves(given[2]), halves(further)
            right, down = (builder.load(v.pointer(1, index, v.reals), align=4) for index in (given[2], further))
            left, up = (builder.fsub(v.real(1.0), one) for one in (right, down))

            def across(pair: Sequence[Any], channel: int) -> Any:
                near, far = (above_air(v, pair, bits * channel + bit, air) for bit in (0, apart))
                return builder.fadd(builder.fmul(left, near), builder.fmul(right, far))

            words = None
            for channel in range(count):
                above, under = (across(pair, channel) for pair in (upper, lower))
                mixed = builder.fadd(builder.fmul(up, above), builder.fmul(down, under))
                made = builder.shl(level(v, mixed, gain, bias, air), v.whole(bits * channel))
                words = made if words is None else builder.or_(words, made)
            put(v, words, given[5])
            return context.get_dummy_value()

        index, two = types.uint64, types.UniTuple(types.float32, 2)
        return types.void(near, parts, index, index, image, index, two, types.int32), code

    return run


class _Vectors:
    """Words of LLVM for vectors of eight, in the code of a compiled function that was `given` its arguments."""

    def __init__(self, context: Any, builder: Any, signature: Any, given: Any) -> None:
        from llvmlite import ir

        self.ir, self.context, self.builder, self.signature, self.given = ir, context, builder, signature, given
        self.number, self.vector = ir.IntType(WORD), ir.VectorType
        self.numbers, self.reals = ir.VectorType(self.number, LANES), ir.VectorType(ir.FloatType(), LANES)

    def pointer(self, which: int, index: Any, kind: Any) -> Any:
        """To an element of an array that was given, as if what begins there were of a kind."""
        from numba.core import cgutils

        array = cgutils.create_struct_proxy(self.signature.args[which])(self.context, self.builder, self.given[which])
        return self.builder.bitcast(self.builder.gep(array.data, [index]), kind.as_pointer())

    def whole(self, number: int) -> Any:
        """A constant in every lane."""
        return self.ir.Constant(self.numbers, [number] * LANES)

    def real(self, number: float) -> Any:
        """A constant in every lane."""
        return self.ir.Constant(self.reals, [number] * LANES)

    def shuffled(self, one: Any, order: Sequence[int]) -> Any:
        """The elements of a vector in another order."""
        chosen = self.ir.Constant(self.vector(self.number, len(order)), list(order))
        return self.builder.shuffle_vector(one, self.ir.Constant(one.type, self.ir.Undefined), chosen)

    def in_all(self, one: Any) -> Any:
        """A number in every lane."""
        empty = self.ir.Constant(self.vector(one.type, LANES), self.ir.Undefined)
        first = self.ir.Constant(self.number, 0)
        return self.shuffled(self.builder.insert_element(empty, one, first), [0] * LANES)

    def rounded(self, one: Any) -> Any:
        """To the nearest whole number, halves to the even one."""
        from numba.core import cgutils

        kind = self.ir.FunctionType(self.reals, [self.reals])
        rint = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.rint.v{LANES}f32")
        return self.builder.call(rint, [one])

    def between(self, low: float, one: Any, high: float) -> Any:
        """Not below `low` and not above `high`."""
        least, most = self.real(low), self.real(high)
        one = self.builder.select(self.builder.fcmp_ordered("<", least, one), one, least)
        return self.builder.select(self.builder.fcmp_ordered("<", one, most), one, most)
