"""Play inside a world model: `python -m diamond_gym.play game=Breakout`.

A session (`session` for games, `browser` for recorded episodes) is explicit state that takes named commands
and held keys and gives a picture and lines of text. `viewer` adds what both need: help, screenshots, films.
`window` shows a viewer on the screen, and is the only module that opens one; `web` shows it in browsers.
"""
