"""Play inside a world model: `python -m diamond_gym.play game=Breakout`.

A session (`session` for games, `browser` for recorded episodes) is explicit state: it takes named commands
and held keys, and returns a picture and lines of text. `viewer` adds what both need: help, screenshots,
films.
`window` is the only module that opens a window, and shows a viewer in it; `web` shows it in browsers.
"""
