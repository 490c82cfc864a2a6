"""`python -m hiresfix.server.web`: update the translation files from the messages in use (see `message_catalogs`)."""

from hiresfix.server.web.languages import ENGLISH, LANGUAGES
from hiresfix.server.web.message_catalogs import update

for language in LANGUAGES:
    if language is not ENGLISH:
        missing = update(language)
        print(f"{language.name}: {missing} messages lack a translation")
