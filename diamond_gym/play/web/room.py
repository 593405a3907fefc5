"""The people on the page: one player, who has the keys, and viewers. Used only in the event loop."""

from __future__ import annotations

from diamond_gym.errors import DiamondGymError, InvalidInputError
from diamond_gym.play.web import protocol
from diamond_gym.play.web.controls import Controls
from diamond_gym.play.web.outbox import Outbox
from diamond_gym.play.web.protocol import Frame, Kind, Message

MAX_PEOPLE = 64
LEFT, FAILED, FULL = 4000, 4001, 4002
"""Codes for closing a connection: the player left, the world model could not be loaded, the room is full."""
_LOADING = protocol.say("status", text="The world model is being loaded.")


class Person:
    """Somebody who has the page open.

    Attributes:
        outbox: The messages to them.
    """

    def __init__(self) -> None:
        self.outbox = Outbox()


class Room:
    """The room, which passes the player's keys to the game and the game's pictures to everybody.

    Args:
        controls: The controls of the game.
    """

    def __init__(self, controls: Controls) -> None:
        self.controls = controls
        self.people: list[Person] = []
        self.player: Person | None = None
        self._introduction: str | None = None
        self._frame: Frame | None = None

    # --- people

    def join(self) -> Person:
        """Add a person, who plays if nobody does.

        Raises:
            InvalidInputError: There are already `MAX_PEOPLE`.
        """
        if len(self.people) >= MAX_PEOPLE:
            raise InvalidInputError(f"{MAX_PEOPLE} people are here already: come back later")
        person = Person()
        self.people.append(person)
        if self.player is None:
            self.player = person
        person.outbox.put("status", self._introduction or _LOADING)
        if self._frame is not None:
            person.outbox.put_frame(self._frame)
        self._people_changed()
        return person

    def leave(self, person: Person) -> None:
        """Remove a person. If it was the player, release the keys and free the seat."""
        self.people.remove(person)
        self._stand_up(person)
        self._people_changed()

    def receive(self, person: Person, text: str | None) -> None:
        """Handle a person's message, None for bytes; answer an invalid one with an error."""
        try:
            if text is None:
                raise InvalidInputError("a message must be text, got bytes")
            self._do(person, protocol.parse(text))
        except DiamondGymError as error:
            person.outbox.put("error", protocol.say("error", text=str(error)))

    def _do(self, person: Person, message: Message) -> None:
        if message.kind is Kind.SHOWN:
            person.outbox.shown(message.number)
        elif message.kind is Kind.SIT:
            self._sit(person)
        elif person is not self.player:
            raise InvalidInputError("you are watching: only the player has the keys")
        elif message.kind is Kind.DOWN:
            self.controls.down(message.key)
        elif message.kind is Kind.UP:
            self.controls.up(message.key)
        elif message.kind is Kind.PRESS:
            self.controls.press(message.key)
        elif message.kind is Kind.SLIDE:
            self.controls.slide(message.number, message.x)
        elif message.kind is Kind.POINT:
            self.controls.point(message.x, message.y)
        elif message.kind is Kind.LIFT:
            self.controls.lift()
        else:
            self.controls.release()

    def _sit(self, person: Person) -> None:
        if self.player not in (None, person):
            raise InvalidInputError("somebody else is playing: wait until the seat is free")
        self.player = person
        self._people_changed()

    def _stand_up(self, person: Person) -> None:
        if person is self.player:
            self.player = None
            self.controls.release()

    def _people_changed(self) -> None:
        self.controls.set_num_people(len(self.people))
        for person in self.people:
            seat = protocol.say(
                "seat",
                is_player=person is self.player,
                is_free=self.player is None,
                num_viewers=len(self.people) - (self.player is not None),
            )
            person.outbox.put("seat", seat)

    # --- the game

    def introduce(self, introduction: str) -> None:
        """Announce that a game has been loaded.

        Args:
            introduction: Its keys and buttons, a message of type "game".
        """
        self._introduction, self._frame = introduction, None
        self._tell("status", introduction)

    def show(self, frame: Frame) -> None:
        """Send a new picture to everybody."""
        self._frame = frame
        for person in self.people:
            person.outbox.put_frame(frame)

    def forget(self) -> None:
        """Note that the game has been freed and will be loaded again."""
        self._introduction = self._frame = None
        self._tell("status", _LOADING)

    def fail(self, text: str) -> None:
        """Disconnect everybody, because the game cannot be loaded."""
        self._tell("status", protocol.say("status", text=text))
        for person in self.people:
            person.outbox.close(FAILED, "the world model could not be loaded")

    def send_player_away(self) -> None:
        """Disconnect the player, who asked to leave."""
        player = self.player
        if player is not None:
            self._stand_up(player)
            player.outbox.close(LEFT, "you left the game")

    def _tell(self, kind: str, text: str) -> None:
        for person in self.people:
            person.outbox.put(kind, text)
