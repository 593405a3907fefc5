"""How a world model runs fast on this machine: layout, precision, graphs and compilers."""
