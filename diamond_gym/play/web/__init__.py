"""Play in a browser: `python -m diamond_gym.play game=Breakout --web`.

Data flows in one direction: page -> `protocol` -> `room` -> `controls` -> `game` -> `room` -> `outbox`
-> page. The room and the outboxes live in the event loop of the web server, in a thread of its own; the game
plays in the main thread, at its own pace. `controls` is the only object that both use.
"""
