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


def placed(wide: int, channels: int, first: int, border: int, room: int) -> Callable[..., None]:
    """A compiled function: where eight pixels of a row lie, and the parts that right and lower neighbours have.

    It takes six float32 of a transform, the first pixel and the row as float32, and from `index` on fills `at` uint32
    [room], the element of channel `first` of the upper left neighbour in an image that is `wide` with its `border` of
    air, and `parts` float32 [2 * room], first those that right neighbours have.

    The rest is that of the left and upper ones: where these lie in the image, 1 - (u - left) is (left + 1) - u to the
    bit; elsewhere they are air, and it multiplies 0.
    """
    from numba import types
    from numba.extending import intrinsic

    @intrinsic
    def run(typing: Any, transform: Any, x: Any, y: Any, at: Any, parts: Any, index: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            v = _Vectors(context, builder, signature, given)
            of_place = [v.in_all(builder.extract_value(given[0], which)) for which in range(6)]
            steps = v.ir.Constant(v.reals, [float(lane) for lane in range(LANES)])
            across, down = builder.fadd(v.in_all(given[1]), steps), v.in_all(given[2])

            def place(row: int, part_at: Any) -> Any:
                by_x, by_y = (builder.fmul(of_place[row + which], one) for which, one in ((0, across), (1, down)))
                exact = builder.fadd(builder.fadd(by_x, by_y), of_place[row + 2])
                begun = v.called("floor", exact)
                builder.store(builder.fsub(exact, begun), v.pointer(4, part_at, v.reals), align=4)
                limited = v.between(-float(border), begun, float(wide - 2 * border))
                return builder.add(builder.fptosi(limited, v.numbers), v.whole(border))

            index = given[5]
            left, top = place(0, index), place(3, builder.add(index, v.ir.Constant(index.type, room)))
            pixel = builder.add(builder.mul(top, v.whole(wide)), left)
            element = builder.add(builder.mul(pixel, v.whole(channels)), v.whole(first))
            builder.store(element, v.pointer(3, index, v.numbers), align=4)
            return context.get_dummy_value()

        six = types.UniTuple(types.float32, 6)
        return types.void(six, types.float32, types.float32, at, parts, types.uint64), code

    return run


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


def blended(bits: int, channels: int, count: int, length: int, room: int, graded: bool) -> Callable[..., None]:
    """A compiled function that mixes the four neighbours of each of eight pixels, and writes `count` channels of them.

    `bits` of a value: 8 of grey levels, 16 of HU; `channels` of a pixel; `length`: elements from a row of the image
    with its border to the next; `room` as `placed` has it. `graded`: gain and bias follow, which HU have not.

    It takes the image with its border; `at` and `parts` as `placed` fills them, and `index` in them; the image that is
    written, and the element of it where the first pixel goes; gain and bias; and air.
    """
    together = bits * (channels + count) <= PAIR  # a pixel and its right neighbour are fetched as one word
    apart = bits * channels if together else WORD  # bits from a channel to that of the right neighbour
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
            above = build.fptosi(v.called("rint", mixed), v.numbers)
            return build.and_(build.add(above, air), v.whole(0xFFFF))
        if graded:
            mixed = v.between(0.0, build.fadd(build.fmul(v.called("rint", mixed), gain), bias), 255.0)
        return build.fptosi(v.called("rint", mixed), v.numbers)  # a mean of grey levels is one

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
    def run(typing: Any, laid: Any, at: Any, parts: Any, index: Any, image: Any, to: Any, levels: Any, air: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, given: Any) -> Any:
            v = _Vectors(context, builder, signature, given)
            gain, bias = (v.in_all(builder.extract_value(given[6], which)) for which in (0, 1))
            air = v.in_all(given[7])
            spots = v.apart(builder.load(v.pointer(1, given[3], v.numbers), align=4))

            def halves(further: int) -> list[Any]:
                """The words of left and of right neighbours."""
                if not together:
                    return [v.gathered(0, spots, further + beside, v.number) for beside in (0, channels)]
                pairs = v.gathered(0, [spots[slot(lane)] for lane in range(LANES)], further, v.ir.DoubleType())
                found = builder.bitcast(pairs, v.vector(v.number, 2 * LANES))
                return [v.shuffled(found, [2 * slot(lane) + half for lane in range(LANES)]) for half in (0, 1)]

            upper, lower = halves(0), halves(length)
            below = builder.add(given[3], v.ir.Constant(given[3].type, room))
            right, down = (builder.load(v.pointer(2, where, v.reals), align=4) for where in (given[3], below))
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
        return types.void(laid, at, parts, index, image, index, two, types.int32), code

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

    def apart(self, one: Any) -> list[Any]:
        """The places in a vector, one by one."""
        long = self.ir.IntType(PAIR)
        lanes = (self.ir.Constant(self.number, lane) for lane in range(LANES))
        return [self.builder.zext(self.builder.extract_element(one, lane), long) for lane in lanes]

    def gathered(self, which: int, places: Sequence[Any], further: int, kind: Any) -> Any:
        """What lies `further` than each place in an array that was given, as a vector.

        It is put together from vectors of two: processors load into their upper halves.
        """
        build, long = self.builder, self.ir.IntType(PAIR)
        parts = []
        for begin in range(0, len(places), 2):
            part = self.ir.Constant(self.vector(kind, 2), self.ir.Undefined)
            for lane in (0, 1):
                place = build.add(places[begin + lane], self.ir.Constant(long, further))
                found = build.load(self.pointer(which, place, kind), align=1)
                part = build.insert_element(part, found, self.ir.Constant(self.number, lane))
            parts.append(part)
        while len(parts) > 1:
            parts = [self.joined(one, other) for one, other in zip(parts[::2], parts[1::2])]
        return parts[0]

    def joined(self, one: Any, other: Any) -> Any:
        """Two vectors as one."""
        order = list(range(2 * one.type.count))
        return self.builder.shuffle_vector(one, other, self.ir.Constant(self.vector(self.number, len(order)), order))

    def called(self, name: str, one: Any) -> Any:
        """What an operation of LLVM makes of floats: `rint`, halves to the even number, or `floor`."""
        from numba.core import cgutils

        kind = self.ir.FunctionType(self.reals, [self.reals])
        operation = cgutils.get_or_insert_function(self.builder.module, kind, f"llvm.{name}.v{LANES}f32")
        return self.builder.call(operation, [one])

    def between(self, low: float, one: Any, high: float) -> Any:
        """Not below `low` and not above `high`."""
        least, most = self.real(low), self.real(high)
        one = self.builder.select(self.builder.fcmp_ordered("<", least, one), one, least)
        return self.builder.select(self.builder.fcmp_ordered("<", one, most), one, most)
