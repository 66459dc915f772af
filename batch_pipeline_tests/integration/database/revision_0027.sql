-- The tables of revision 0027, as pg_dump wrote them.
CREATE EXTENSION IF NOT EXISTS vector WITH SCHEMA public;

CREATE FUNCTION public.batch_pipeline_answer_next_user() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
            BEGIN
                
        INSERT INTO answering_spaces (user_id, space_id)
        SELECT coalesce(NEW.user_id, '00000000-0000-0000-0000-000000000000'::uuid), space_id FROM answering_spaces
        WHERE user_id = coalesce(OLD.user_id, '00000000-0000-0000-0000-000000000000'::uuid) FOR SHARE
        ON CONFLICT DO NOTHING
    ;
                RETURN NULL;
            END $$;

CREATE FUNCTION public.batch_pipeline_make_vectors(space integer) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $_$
        DECLARE
            of_space text := 'upload_vectors_' || space;
            numbers integer := (SELECT width FROM embedding_spaces WHERE id = space);
        BEGIN
            IF numbers IS NULL THEN
                RAISE 'there is no embedding space %', space;
            END IF;
            EXECUTE format(
                'CREATE TABLE IF NOT EXISTS %1$I (LIKE upload_vectors INCLUDING DEFAULTS,
                    CHECK (space_id = %2$s), CHECK (vector_dims(vector) = %3$s),
                    PRIMARY KEY (upload_id, space_id))', of_space, space, numbers);
            EXECUTE format(
                'CREATE INDEX IF NOT EXISTS %I ON %I USING hnsw ((vector::halfvec(%s)) halfvec_cosine_ops) WITH (m = 16, ef_construction = 64)',
                'ix_' || of_space, of_space, numbers);
            -- Made apart and attached: that waits for nobody who reads or writes vectors.
            IF NOT (SELECT relispartition FROM pg_class WHERE oid = to_regclass(of_space)) THEN
                EXECUTE format('ALTER TABLE upload_vectors ATTACH PARTITION %I FOR VALUES IN (%s)',
                    of_space, space);
            END IF;
        END $_$;

CREATE FUNCTION public.batch_pipeline_note_changed_batches() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
            BEGIN
                
    INSERT INTO batches_to_recount (batch_id)
    SELECT id FROM upload_batches
    WHERE id IN (SELECT batch_id FROM changed) AND coalesce(status::text, '') NOT IN ('pending', 'processing')
;
                RETURN NULL;
            END $$;

CREATE FUNCTION public.batch_pipeline_note_changed_upload() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
            BEGIN
                
    INSERT INTO batches_to_recount (batch_id)
    SELECT id FROM upload_batches
    WHERE id IN (OLD.batch_id, NEW.batch_id) AND coalesce(status::text, '') NOT IN ('pending', 'processing')
;
                RETURN NULL;
            END $$;

CREATE FUNCTION public.batch_pipeline_signal_work() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
            BEGIN
                PERFORM pg_notify('batch_pipeline_work', '');
                RETURN NULL;
            END $$;

CREATE FUNCTION public.batch_pipeline_tell_batch() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
            BEGIN
                INSERT INTO notifications (type, data) SELECT 
            'batch.' || NEW.status::text, jsonb_build_object(
                'batch_id', NEW.id, 'user_id', NEW.user_id, 'name', NEW.name,
                'status', NEW.status::text, 'total', coalesce(NEW.total_uploads, 0),
                'successful', coalesce(NEW.successful_uploads, 0),
                'failed', coalesce(NEW.failed_uploads, 0), 'reason', NEW.error_message)
        ;
                RETURN NULL;
            END $$;

CREATE FUNCTION public.batch_pipeline_tell_end() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
            BEGIN
                INSERT INTO notifications (type, data) SELECT 
            'outage.ended', jsonb_build_object(
                'kind', OLD.kind, 'reason', OLD.reason, 'began_at', OLD.began_at,
                'seconds', round(extract(epoch FROM clock_timestamp() - OLD.began_at)))
        ;
                RETURN NULL;
            END $$;

CREATE FUNCTION public.batch_pipeline_tell_outage() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
            BEGIN
                INSERT INTO notifications (type, data) SELECT 
            'outage.begun', jsonb_build_object(
                'kind', NEW.kind, 'reason', NEW.reason, 'began_at', NEW.began_at)
        ;
                RETURN NULL;
            END $$;

CREATE FUNCTION public.batch_pipeline_tell_upload() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
            BEGIN
                INSERT INTO notifications (type, data) SELECT 
            'upload.quarantined', jsonb_build_object(
                'upload_id', NEW.id, 'batch_id', NEW.batch_id, 'user_id', NEW.user_id,
                'filename', NEW.filename, 'error_kind', NEW.error_kind,
                'reason', NEW.error_message)
        ;
                RETURN NULL;
            END $$;

CREATE FUNCTION public.batch_pipeline_vectors_of_gone_uploads() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'public', 'pg_temp'
    AS $$
            BEGIN
                DELETE FROM upload_vectors WHERE upload_id IN (SELECT id FROM gone);
                RETURN NULL;
            END $$;

CREATE FUNCTION public.upload_facts(metadata json) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE COST 1000
    AS $$
BEGIN
    RETURN regexp_replace(
        metadata::text,
        '(\\[^u]|\\u[dD][89abAB]..\\u[dD][c-fC-F]..)|\\u(0000|[dD][89a-fA-F]..)', '\1', 'g'
    )::jsonb;
EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
    RETURN NULL;
END $$;

CREATE FUNCTION public.upload_facts(metadata jsonb) RETURNS jsonb
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ SELECT metadata $$;

CREATE FUNCTION public.upload_words(description text, filename text, metadata jsonb, tags text[], visible_text text) RETURNS tsvector
    LANGUAGE sql IMMUTABLE COST 1000 PARALLEL SAFE
    AS $$
    SELECT to_tsvector('pg_catalog.english'::regconfig, words)
        || to_tsvector('pg_catalog.simple'::regconfig, words)
    FROM (
        SELECT concat_ws(
            ' ',
            left(description, 20000),
            left(filename, 500),
            regexp_replace(left(filename, 500), '[^[:alnum:]]+', ' ', 'g'),
            left(metadata ->> 'camera', 200),
            left(array_to_string(tags, ' '), 2000),
            left(visible_text, 8000)
        ) AS words
    ) AS joined
$$;

CREATE TABLE public.answering_spaces (
    user_id uuid NOT NULL,
    space_id integer NOT NULL,
    since timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.asked_slices (
    key text NOT NULL,
    asked_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.batch_pipeline_version (
    version_num character varying(32) NOT NULL
);

CREATE TABLE public.batches_to_recount (
    id bigint NOT NULL,
    batch_id uuid NOT NULL
);

ALTER TABLE public.batches_to_recount ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.batches_to_recount_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.database_identity (
    id uuid DEFAULT gen_random_uuid() NOT NULL
);

CREATE TABLE public.descriptions_in_work (
    user_id uuid NOT NULL,
    checksum text NOT NULL,
    fingerprint text NOT NULL,
    upload_id uuid NOT NULL,
    claim_token bigint NOT NULL,
    taken_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.embedding_spaces (
    id integer NOT NULL,
    model text NOT NULL,
    width integer NOT NULL,
    document_prefix text DEFAULT ''::text NOT NULL,
    question_prefix text DEFAULT ''::text NOT NULL,
    embedder text DEFAULT ''::text NOT NULL,
    addresses text DEFAULT ''::text NOT NULL,
    options text DEFAULT ''::text NOT NULL,
    created_at timestamp with time zone DEFAULT now() NOT NULL
);

ALTER TABLE public.embedding_spaces ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME public.embedding_spaces_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE public.made_thumbnails (
    upload_id uuid NOT NULL,
    user_id uuid NOT NULL,
    made_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.model_call_slots (
    server text NOT NULL,
    kind text NOT NULL,
    holder uuid NOT NULL,
    wanted integer NOT NULL,
    held integer NOT NULL,
    since timestamp with time zone NOT NULL,
    leased_until timestamp with time zone NOT NULL
);

CREATE TABLE public.model_calls (
    id uuid NOT NULL,
    upload_id uuid,
    batch_id uuid,
    user_id uuid,
    kind text NOT NULL,
    model text NOT NULL,
    tokens_in integer NOT NULL,
    tokens_out integer NOT NULL,
    seconds double precision NOT NULL,
    answered_at timestamp with time zone DEFAULT now() NOT NULL
);

CREATE TABLE public.model_pauses (
    server text NOT NULL,
    kind text NOT NULL,
    not_before timestamp with time zone NOT NULL,
    reason text NOT NULL
);

CREATE TABLE public.notification_deliveries (
    notification_id uuid NOT NULL,
    target text NOT NULL,
    attempts integer DEFAULT 0 NOT NULL,
    next_attempt_at timestamp with time zone DEFAULT clock_timestamp(),
    delivered_at timestamp with time zone,
    answer text
);

CREATE TABLE public.notifications (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    type text NOT NULL,
    data jsonb NOT NULL,
    occurred_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    addressed_at timestamp with time zone
);

CREATE TABLE public.outages (
    kind text NOT NULL,
    reason text NOT NULL,
    began_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    seen_at timestamp with time zone DEFAULT clock_timestamp() NOT NULL
);

CREATE TABLE public.upload_batches (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    user_id uuid NOT NULL,
    status text DEFAULT 'pending'::text NOT NULL,
    total_uploads integer DEFAULT 0 NOT NULL,
    processed_uploads integer DEFAULT 0 NOT NULL,
    successful_uploads integer DEFAULT 0 NOT NULL,
    failed_uploads integer DEFAULT 0 NOT NULL,
    error_message text,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    started_at timestamp with time zone,
    completed_at timestamp with time zone,
    name text,
    priority text,
    slices integer DEFAULT 0 NOT NULL,
    died_runs integer DEFAULT 0 NOT NULL
);

CREATE TABLE public.upload_vectors (
    upload_id uuid NOT NULL,
    space_id integer NOT NULL,
    vector public.vector NOT NULL
)
PARTITION BY LIST (space_id);

CREATE TABLE public.uploads (
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    user_id uuid NOT NULL,
    batch_id uuid,
    filename text NOT NULL,
    file_path text NOT NULL,
    file_type text NOT NULL,
    file_size bigint NOT NULL,
    mime_type text,
    processing_status text DEFAULT 'pending'::text NOT NULL,
    description text,
    description_audit_score integer,
    embedding_local public.vector(1024),
    thumbnail_path text,
    video_codec text,
    error_message text,
    metadata jsonb DEFAULT '{}'::jsonb NOT NULL,
    hidden boolean DEFAULT false NOT NULL,
    regeneration_count integer DEFAULT 0 NOT NULL,
    last_regenerated_at timestamp with time zone,
    created_at timestamp with time zone DEFAULT now() NOT NULL,
    updated_at timestamp with time zone DEFAULT now() NOT NULL,
    slice integer,
    dispatch_reason text DEFAULT 'new'::text NOT NULL,
    owner_run_id text,
    claim_token bigint DEFAULT '0'::bigint NOT NULL,
    heartbeat_at timestamp with time zone,
    attempts integer DEFAULT 0 NOT NULL,
    not_before timestamp with time zone,
    redo text[] DEFAULT '{}'::text[] NOT NULL,
    error_kind text,
    vision_model text,
    vision_tags text[] DEFAULT '{}'::text[] NOT NULL,
    visible_text text,
    vision_fingerprint text,
    embedding_fingerprint text,
    embedding_model text,
    stage_seconds jsonb DEFAULT '{}'::jsonb NOT NULL,
    checksum text,
    deaths integer DEFAULT 0 NOT NULL,
    server_deaths integer DEFAULT 0 NOT NULL,
    retries integer DEFAULT 0 NOT NULL,
    retry_at timestamp with time zone
);

CREATE TABLE public.work_pauses (
    scope text NOT NULL,
    target text DEFAULT ''::text NOT NULL,
    reason text DEFAULT ''::text NOT NULL,
    since timestamp with time zone DEFAULT now() NOT NULL
);

ALTER TABLE ONLY public.batch_pipeline_version
    ADD CONSTRAINT batch_pipeline_version_pkc PRIMARY KEY (version_num);

ALTER TABLE ONLY public.answering_spaces
    ADD CONSTRAINT pk_answering_spaces PRIMARY KEY (user_id);

ALTER TABLE ONLY public.asked_slices
    ADD CONSTRAINT pk_asked_slices PRIMARY KEY (key);

ALTER TABLE ONLY public.batches_to_recount
    ADD CONSTRAINT pk_batches_to_recount PRIMARY KEY (id);

ALTER TABLE ONLY public.database_identity
    ADD CONSTRAINT pk_database_identity PRIMARY KEY (id);

ALTER TABLE ONLY public.descriptions_in_work
    ADD CONSTRAINT pk_descriptions_in_work PRIMARY KEY (user_id, checksum, fingerprint);

ALTER TABLE ONLY public.embedding_spaces
    ADD CONSTRAINT pk_embedding_spaces PRIMARY KEY (id);

ALTER TABLE ONLY public.made_thumbnails
    ADD CONSTRAINT pk_made_thumbnails PRIMARY KEY (upload_id);

ALTER TABLE ONLY public.model_call_slots
    ADD CONSTRAINT pk_model_call_slots PRIMARY KEY (server, kind, holder);

ALTER TABLE ONLY public.model_calls
    ADD CONSTRAINT pk_model_calls PRIMARY KEY (id);

ALTER TABLE ONLY public.model_pauses
    ADD CONSTRAINT pk_model_pauses PRIMARY KEY (server, kind);

ALTER TABLE ONLY public.notification_deliveries
    ADD CONSTRAINT pk_notification_deliveries PRIMARY KEY (notification_id, target);

ALTER TABLE ONLY public.notifications
    ADD CONSTRAINT pk_notifications PRIMARY KEY (id);

ALTER TABLE ONLY public.outages
    ADD CONSTRAINT pk_outages PRIMARY KEY (kind);

ALTER TABLE ONLY public.upload_batches
    ADD CONSTRAINT pk_upload_batches PRIMARY KEY (id);

ALTER TABLE ONLY public.upload_vectors
    ADD CONSTRAINT pk_upload_vectors PRIMARY KEY (upload_id, space_id);

ALTER TABLE ONLY public.uploads
    ADD CONSTRAINT pk_uploads PRIMARY KEY (id);

ALTER TABLE ONLY public.work_pauses
    ADD CONSTRAINT pk_work_pauses PRIMARY KEY (scope, target);

CREATE INDEX ix_answering_spaces_space_id ON public.answering_spaces USING btree (space_id);

CREATE UNIQUE INDEX ix_embedding_spaces_key ON public.embedding_spaces USING btree (model, width, document_prefix);

CREATE INDEX ix_model_calls_answered_at ON public.model_calls USING btree (answered_at);

CREATE INDEX ix_model_calls_batch ON public.model_calls USING btree (batch_id);

CREATE INDEX ix_model_calls_upload ON public.model_calls USING btree (upload_id);

CREATE INDEX ix_model_calls_user ON public.model_calls USING btree (user_id);

CREATE INDEX ix_notification_deliveries_next_attempt_at ON public.notification_deliveries USING btree (next_attempt_at);

CREATE INDEX ix_upload_batches_newest ON public.upload_batches USING btree (NULLIF(NULLIF(created_at, 'infinity'::timestamp with time zone), '-infinity'::timestamp with time zone) DESC NULLS LAST, id);

CREATE INDEX ix_upload_batches_open ON public.upload_batches USING btree (created_at, id) WHERE (status = ANY (ARRAY['pending'::text, 'processing'::text]));

CREATE INDEX ix_upload_batches_stopped ON public.upload_batches USING btree (id) WHERE (status = ANY (ARRAY['cancelled'::text, 'failed'::text]));

CREATE INDEX ix_uploads_audit_score ON public.uploads USING btree (description_audit_score);

CREATE INDEX ix_uploads_batch ON public.uploads USING btree (batch_id, created_at, id);

CREATE INDEX ix_uploads_checksum ON public.uploads USING btree (checksum) WHERE (embedding_model IS NOT NULL);

CREATE INDEX ix_uploads_embedding_fingerprint ON public.uploads USING btree (embedding_fingerprint) WHERE (processing_status = 'completed'::text);

CREATE INDEX ix_uploads_embedding_model ON public.uploads USING btree (embedding_model);

CREATE INDEX ix_uploads_ended ON public.uploads USING btree (updated_at) WHERE (processing_status = ANY (ARRAY['completed'::text, 'failed'::text]));

CREATE INDEX ix_uploads_filename ON public.uploads USING hash (lower(filename)) WHERE (embedding_model IS NOT NULL);

CREATE INDEX ix_uploads_held ON public.uploads USING btree (owner_run_id) WHERE ((owner_run_id IS NOT NULL) OR (processing_status = ANY (ARRAY['analyzing'::text, 'embedding'::text])));

CREATE INDEX ix_uploads_retry_at ON public.uploads USING btree (retry_at) WHERE (retry_at IS NOT NULL);

CREATE INDEX ix_uploads_tags ON public.uploads USING gin (vision_tags) WHERE (embedding_model IS NOT NULL);

CREATE INDEX ix_uploads_user ON public.uploads USING btree (user_id, embedding_model);

CREATE INDEX ix_uploads_vision_fingerprint ON public.uploads USING btree (vision_fingerprint) WHERE (processing_status = 'completed'::text);

CREATE INDEX ix_uploads_waiting ON public.uploads USING btree (batch_id, slice, created_at, id) WHERE ((processing_status = 'pending'::text) AND (owner_run_id IS NULL));

CREATE INDEX ix_uploads_without_batch ON public.uploads USING btree (created_at) WHERE ((batch_id IS NULL) AND (processing_status = 'pending'::text));

CREATE INDEX ix_uploads_words ON public.uploads USING gin (public.upload_words(description, filename, public.upload_facts(metadata), vision_tags, visible_text)) WHERE (embedding_model IS NOT NULL);

CREATE STATISTICS public.batch_pipeline_uploads_camera ON lower(COALESCE(NULLIF(metadata, 'null'::jsonb), '{}'::jsonb) ->> 'camera'::text) FROM public.uploads;

CREATE STATISTICS public.batch_pipeline_uploads_date ON (COALESCE(COALESCE(NULLIF(metadata, 'null'::jsonb), '{}'::jsonb) ->> 'captured_at'::text, to_char(timezone('UTC'::text, NULLIF(NULLIF(created_at, 'infinity'::timestamp with time zone), '-infinity'::timestamp with time zone)), 'YYYY-MM-DD"T"HH24:MI:SS'::text)) COLLATE "C") FROM public.uploads;

CREATE STATISTICS public.batch_pipeline_uploads_format ON (COALESCE(NULLIF(metadata, 'null'::jsonb), '{}'::jsonb) ->> 'format'::text) FROM public.uploads;

CREATE TRIGGER batch_pipeline_answer_next_user AFTER UPDATE OF user_id ON public.uploads FOR EACH ROW WHEN (((old.user_id IS DISTINCT FROM new.user_id) AND (new.embedding_model IS NOT NULL))) EXECUTE FUNCTION public.batch_pipeline_answer_next_user();

CREATE TRIGGER batch_pipeline_batch_opened AFTER UPDATE OF status ON public.upload_batches FOR EACH ROW WHEN (((new.status = ANY (ARRAY['pending'::text, 'processing'::text])) AND (new.status <> old.status))) EXECUTE FUNCTION public.batch_pipeline_signal_work();

CREATE TRIGGER batch_pipeline_tell_batch AFTER UPDATE OF status ON public.upload_batches FOR EACH ROW WHEN (((new.status = ANY (ARRAY['completed'::text, 'failed'::text, 'cancelled'::text])) AND (old.status IS DISTINCT FROM new.status))) EXECUTE FUNCTION public.batch_pipeline_tell_batch();

CREATE TRIGGER batch_pipeline_tell_end AFTER DELETE ON public.outages FOR EACH ROW EXECUTE FUNCTION public.batch_pipeline_tell_end();

CREATE TRIGGER batch_pipeline_tell_outage AFTER INSERT ON public.outages FOR EACH ROW EXECUTE FUNCTION public.batch_pipeline_tell_outage();

CREATE TRIGGER batch_pipeline_tell_upload AFTER UPDATE OF processing_status ON public.uploads FOR EACH ROW WHEN (((new.processing_status = 'failed'::text) AND (new.error_kind = ANY (ARRAY['killed_worker'::text, 'model_server_crash'::text])) AND (old.processing_status IS DISTINCT FROM new.processing_status))) EXECUTE FUNCTION public.batch_pipeline_tell_upload();

CREATE TRIGGER batch_pipeline_upload_changed AFTER UPDATE OF processing_status, batch_id ON public.uploads FOR EACH ROW WHEN (((old.batch_id IS DISTINCT FROM new.batch_id) OR ((old.processing_status IS DISTINCT FROM new.processing_status) AND (COALESCE(old.processing_status, ''::text) <> ALL (ARRAY['analyzing'::text, 'embedding'::text])) AND (COALESCE(new.processing_status, ''::text) <> ALL (ARRAY['analyzing'::text, 'embedding'::text]))))) EXECUTE FUNCTION public.batch_pipeline_note_changed_upload();

CREATE TRIGGER batch_pipeline_upload_waits AFTER UPDATE OF processing_status, owner_run_id, batch_id ON public.uploads FOR EACH ROW WHEN (((new.processing_status = 'pending'::text) AND (new.owner_run_id IS NULL) AND ((old.processing_status <> 'pending'::text) OR (old.owner_run_id IS NOT NULL) OR (old.batch_id IS DISTINCT FROM new.batch_id)))) EXECUTE FUNCTION public.batch_pipeline_signal_work();

CREATE TRIGGER batch_pipeline_uploads_added AFTER INSERT ON public.uploads FOR EACH STATEMENT EXECUTE FUNCTION public.batch_pipeline_signal_work();

CREATE TRIGGER batch_pipeline_uploads_came AFTER INSERT ON public.uploads REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION public.batch_pipeline_note_changed_batches();

CREATE TRIGGER batch_pipeline_uploads_gone AFTER DELETE ON public.uploads REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION public.batch_pipeline_note_changed_batches();

CREATE TRIGGER batch_pipeline_vectors_of_gone_uploads AFTER DELETE ON public.uploads REFERENCING OLD TABLE AS gone FOR EACH STATEMENT EXECUTE FUNCTION public.batch_pipeline_vectors_of_gone_uploads();

ALTER TABLE ONLY public.notification_deliveries
    ADD CONSTRAINT fk_notification_deliveries_notification_id FOREIGN KEY (notification_id) REFERENCES public.notifications(id) ON DELETE CASCADE;

ALTER TABLE ONLY public.uploads
    ADD CONSTRAINT fk_uploads_batch_id FOREIGN KEY (batch_id) REFERENCES public.upload_batches(id) ON DELETE SET NULL;

INSERT INTO public.batch_pipeline_version VALUES ('0027');
