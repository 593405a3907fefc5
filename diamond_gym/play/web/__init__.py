"""Play in a browser: `python -m diamond_gym.play game=Breakout --web`.

Data goes round in one direction: page -> `protocol` -> `room` -> `controls` -> `game` -> `room` -> `outbox`
-> page. The room and the outboxes live in the event loop of the web server, in a thread of its own; the game
plays in the main thread, at its own pace. `controls` is all that both touch.
"""
