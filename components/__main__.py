"""The plugin as a folder: `pulumi package add <path>` from a project in any language."""

from port_webhook_stack.port.provider_server import main

if __name__ == "__main__":
    main()
