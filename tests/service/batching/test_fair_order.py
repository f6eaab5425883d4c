"""Turns are shared between flows, whatever they ask for, and everybody's comes."""

from __future__ import annotations

import itertools
from collections.abc import Hashable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from service.batching.fair_order import FLOWS_KEPT, HEAD_START, LEAST_SHARE, FairOrder

WINDOW = 400


@dataclass(eq=False)
class Piece:
    """Something that waits."""

    flow: Hashable
    cost: int = WINDOW


def add(order: FairOrder[Piece], flow: Hashable, cost: int = WINDOW) -> Piece:
    piece = Piece(flow, cost)
    order.add(piece, flow, cost)
    return piece


def book_of(order: FairOrder[Piece], flow: Hashable, windows: int) -> list[Piece]:
    """A book's windows, all at once."""
    return [add(order, flow) for _ in range(windows)]


def serve(order: FairOrder[Piece]) -> Piece:
    """The first gets its turn."""
    piece = next(iter(order))
    order.take(piece, piece.cost)
    return piece


@given(
    books=st.lists(st.integers(1, 30), min_size=1, max_size=8), served=st.integers(0, 200), tiny=st.integers(1, WINDOW)
)
def test_a_tiny_request_waits_for_the_first_window_of_new_books_at_most(
    books: list[int], served: int, tiny: int
) -> None:
    order: FairOrder[Piece] = FairOrder()
    first = {book: book_of(order, book, windows)[0] for book, windows in enumerate(books)}
    for _ in range(min(served, sum(books) - 1)):
        piece = serve(order)
        if served % 2:
            add(order, piece.flow)
    question = add(order, "a tiny question", tiny)
    ahead = list(itertools.takewhile(lambda piece: piece is not question, order))
    assert set(ahead) <= set(first.values()), "a book has two turns before it"


@given(
    costs=st.lists(st.integers(1, WINDOW), min_size=2, max_size=6),
    turns=st.integers(1, 300),
)
def test_flows_that_always_want_more_get_equal_shares(costs: list[int], turns: int) -> None:
    order: FairOrder[Piece] = FairOrder()
    got = dict.fromkeys(range(len(costs)), 0)
    for flow, cost in enumerate(costs):
        for _ in range(3):
            add(order, flow, cost)
    for _ in range(turns):
        piece = serve(order)
        got[piece.flow] += piece.cost
        add(order, piece.flow, piece.cost)
    for one, other in itertools.combinations(got, 2):
        assert abs(got[one] - got[other]) <= costs[one] + costs[other]


@settings(max_examples=25, deadline=None)
@given(data=st.data(), places=st.integers(2, 12), debt=st.integers(1, 4))
def test_nothing_starves_beside_flows_that_never_stop_coming(data: st.DataObject, places: int, debt: int) -> None:
    order: FairOrder[Piece] = FairOrder()
    windows = [add(order, "book") for _ in range(debt)]
    newcomers = itertools.count()
    for turn in itertools.count():
        # Whoever comes is of a flow of its own, and would go before a book that has had its share.
        while len(order) < places + debt and data.draw(st.booleans() if turn < 30 else st.just(True)):
            add(order, next(newcomers), WINDOW // 8)
        if serve(order) is windows[-1]:
            break
        bound = (debt * WINDOW + HEAD_START) / LEAST_SHARE / (WINDOW // 8)
        assert turn <= bound + places + debt, "the book starves"


def test_what_a_flow_was_given_out_of_turn_counts_too() -> None:
    order: FairOrder[Piece] = FairOrder()
    pieces = {flow: [add(order, flow) for _ in range(3)] for flow in "ab"}
    for piece in pieces["a"]:
        order.take(piece, piece.cost)
    late = add(order, "a")
    assert list(order) == [*pieces["b"], late]


def test_a_flow_that_comes_back_pays_what_it_owes_and_no_more() -> None:
    order: FairOrder[Piece] = FairOrder()
    waits = add(order, "waits")
    for _ in range(4):
        order.take(add(order, "has had four"), WINDOW)
    fifth, new = add(order, "has had four"), add(order, "new")
    assert list(order) == [waits, new, fifth]
    others = [add(order, "new") for _ in range(4)]
    assert list(order) == [waits, new, *others[:3], fifth, others[3]]


def test_nobody_owes_anything_once_nobody_waits() -> None:
    order: FairOrder[Piece] = FairOrder()
    for _ in range(4):
        order.take(add(order, "was alone"), WINDOW)
    first, second = add(order, "was alone"), add(order, "new")
    assert list(order) == [first, second]


def test_flows_that_have_gone_are_forgotten() -> None:
    order: FairOrder[Piece] = FairOrder()
    for flow in range(50 * FLOWS_KEPT):
        add(order, flow)
        if flow > 3:
            serve(order)
    assert len(order._flows) <= 4 * FLOWS_KEPT


class Waiting(RuleBasedStateMachine):
    """Pieces come, get their turn anywhere and leave; the order stays one."""

    def __init__(self) -> None:
        super().__init__()
        self.order: FairOrder[Piece] = FairOrder()
        self.pieces: list[Piece] = []
        """By arrival."""

    @rule(flow=st.integers(0, 4), cost=st.integers(1, WINDOW))
    def come(self, flow: int, cost: int) -> None:
        self.pieces.append(add(self.order, flow, cost))

    @precondition(lambda self: self.pieces)
    @rule(which=st.integers(0, 1000), turn=st.booleans())
    def go(self, which: int, turn: bool) -> None:
        piece = self.pieces.pop(which % len(self.pieces))
        if turn:
            self.order.take(piece, piece.cost)
        else:
            self.order.remove(piece)
        with pytest.raises(KeyError):
            self.order.remove(piece)

    @invariant()
    def everything_waits_once_and_flows_are_in_order(self) -> None:
        found = list(self.order)
        assert len(found) == len(self.order) == len(self.pieces)
        assert set(found) == set(self.pieces)
        for flow in range(5):
            assert [each for each in found if each.flow == flow] == [each for each in self.pieces if each.flow == flow]


TestWaiting = Waiting.TestCase
TestWaiting.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@given(st.lists(st.tuples(st.integers(1, WINDOW), st.booleans()), max_size=60))
def test_flows_of_one_item_each_keep_the_order_of_their_arrival(arrivals: list[tuple[int, bool]]) -> None:
    order: FairOrder[Piece] = FairOrder()
    waiting: list[Piece] = []
    for number, (cost, then_serve) in enumerate(arrivals):
        waiting.append(add(order, number, cost))
        assert list(order) == waiting
        if then_serve:
            assert serve(order) is waiting.pop(0)
