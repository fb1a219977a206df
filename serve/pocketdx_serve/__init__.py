"""The HTTP server for a PocketDx model file: `pocketdx serve MODEL`, or `pocketdx_serve.app.create_app`.

Layers point one way: ``settings`` and ``problems`` (plain data), ``multipart`` and ``body`` (bytes off the
wire), ``workers`` and ``engine`` (decode and inference in a bounded pool), ``service`` (what one running app
holds), ``routes``, ``replies``, ``docs`` and ``envelope`` (HTTP), ``app`` (the factory), ``server`` (a socket
and signals), ``commands``.
"""
