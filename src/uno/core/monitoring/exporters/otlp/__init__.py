"""Push by OTLP/HTTP. Which file does what?

``config`` reads arguments and the ``OTEL_*`` variables, ``encode`` writes protobuf and JSON, ``snapshot`` turns a
frame into requests and knows what a receiver has got, ``http`` sends one request, ``push`` decides when.
"""
