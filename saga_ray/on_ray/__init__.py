"""Where the stages run on Ray; the only folder that imports it. Everything here also runs in one process without it."""
